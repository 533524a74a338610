"""Whether a layer's error should be weighed by what it does to the model's output.

The weight of a layer is measured: that layer alone runs sparse, and what becomes of the squared error of its attention
in the model's output is its sensitivity. Then whole evaluations run with budgets of the same mean work, solved with and
without the weights, on other seeds; the error of the model's output says which is better.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor
from tqdm import tqdm

from benchmarks.calibration.calibration_runs import Kept, merged
from benchmarks.calibration.plan import Sensitivity
from benchmarks.calibration.spend import solved
from benchmarks.quality.capture import attention_replaced, dense_attention, prompt_of
from benchmarks.quality.plan import Clock
from benchmarks.quality.raw import Raw, Shard, significant
from demo.flow import predict_velocity
from demo.sample import sample, sigmas
from draftattention.draftattn_core import Settings, TableCache
from draftattention.draftattn_core.attention import attend
from draftattention.draftattn_core.method.policy import Policy
from draftattention.draftattn_core.run.figures import CompleteFigures, bucket_of
from draftattention.draftattn_core.run.profile import MAIN
from draftattention.nodes.demo_prompts import prompt_embedding


@dataclass(frozen=True)
class Point:
    """Where in a dense run the model is asked: latent, noise level, text, and its dense answer."""

    x: Tensor
    level: Tensor
    text: Tensor
    progress: float
    dense: Tensor


def unit(scenario: Sensitivity, seed: int, step: int) -> list[object]:
    made = [run.key for run in scenario.calibration]
    return ["sensitivity", str(scenario.grid), scenario.steps, seed, prompt_of(seed), step, list(scenario.works), made]


def measure_sensitivity(
    model: WanTransformer3DModel, scenario: Sensitivity, raw: Raw, kept: Kept, clock: Clock, shard: Shard
) -> bool:
    """Weights of the measuring seeds first, then both kinds of budgets on the judged seeds."""
    cache = TableCache(16)
    profile = merged([kept.profile(model, run) for run in scenario.calibration]).complete(MAIN)
    seeds = (*scenario.weighing, *scenario.seeds)
    with tqdm(total=len(seeds) * len(scenario.at_steps), unit="evaluation", desc=scenario.name) as bar:
        for seed in seeds:
            known = {str(record["unit"]): record for record in raw.records()}
            missing = [step for step in scenario.at_steps if str(unit(scenario, seed, step)) not in known]
            bar.update(len(scenario.at_steps) - len(missing))
            if not missing:
                continue
            if clock.left() < 0:
                return False
            for step, point in points(model, scenario, seed, missing).items():
                since = time.monotonic()
                if seed in scenario.weighing:
                    found = {"weights": weigh(model, scenario, profile, point, cache)}
                else:
                    weights = mean_weights(scenario, raw)
                    found = {
                        "errors": judge(model, scenario, profile, point, cache, weights[bucket_of(point.progress)])
                    }
                raw.append({"unit": unit(scenario, seed, step), **found, "took": round(time.monotonic() - since, 2)})
                bar.update()
    return True


def points(model: WanTransformer3DModel, scenario: Sensitivity, seed: int, steps: list[int]) -> dict[int, Point]:
    """Places in the dense run of a seed."""
    levels = sigmas(scenario.steps, 5.0)
    text, found = prompt_embedding(prompt_of(seed)), {}
    last = max(steps)

    class _Enough(Exception):
        pass

    inputs: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}

    def before(module: torch.nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> None:
        inputs[len(inputs)] = args[0]

    def after(module: torch.nn.Module, args: object, output: tuple[Tensor, ...]) -> None:
        outputs[len(outputs)] = output[0]

    def enough(step: int, *_: object) -> None:
        if step >= last:
            raise _Enough

    hooks = (model.register_forward_pre_hook(before, with_kwargs=True), model.register_forward_hook(after))
    try:
        sample(
            model, prompt_of(seed), scenario.grid.as_tuple(), steps=scenario.steps, seed=seed, cfg=1.0, callback=enough
        )
    except _Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    for step in steps:
        found[step] = Point(inputs[step], levels[step : step + 1], text, step / scenario.steps, outputs[step])
    return found


def weigh(
    model: WanTransformer3DModel, scenario: Sensitivity, figures: CompleteFigures, point: Point, cache: TableCache
) -> list[float]:
    """Squared error of the model's output per squared error of each layer's attention, that layer alone sparse."""
    policies = solved(figures, Settings(), scenario.grid, bucket_of(point.progress), scenario.works[0], cache)
    weights = []
    for layer, policy in enumerate(policies):
        if policy is None:
            weights.append(0.0)
            continue
        inner: list[float] = []
        out = _evaluate(model, scenario, point, cache, lambda at: policy if at == layer else None, inner)  # noqa: B023
        weights.append(significant(float((out - point.dense).square().sum()) / max(sum(inner), 1e-30)))
    return weights


def judge(
    model: WanTransformer3DModel,
    scenario: Sensitivity,
    figures: CompleteFigures,
    point: Point,
    cache: TableCache,
    weights: list[float],
) -> dict[str, list[float]]:
    """Relative L2 error of the model's output at each work, all layers sparse, by how layers were weighed."""
    found: dict[str, list[float]] = {"plain": [], "weighed": []}
    for work in scenario.works:
        for name in found:
            given = None if name == "plain" else weights
            policies = solved(figures, Settings(), scenario.grid, bucket_of(point.progress), work, cache, given)
            out = _evaluate(model, scenario, point, cache, lambda at: policies[at])  # noqa: B023
            found[name].append(significant(float((out - point.dense).norm() / point.dense.norm())))
    return found


def _evaluate(
    model: WanTransformer3DModel,
    scenario: Sensitivity,
    point: Point,
    cache: TableCache,
    policy_of: Callable[[int], Policy | None],
    inner: list[float] | None = None,
) -> Tensor:
    """The model's output with some layers sparse; `inner` gets the squared error of their attention."""
    layout = Settings().layout(scenario.grid)

    def answer(q: Tensor, k: Tensor, v: Tensor, layer: int, step: int) -> Tensor:
        policy = policy_of(layer)
        if policy is None:
            return dense_attention(q, k, v, layer, step)
        out = attend(q, k, v, layout, policy, cache=cache).out
        if inner is not None:
            inner.append(float((out - dense_attention(q, k, v, layer, step)).square().sum()))
        return out

    with torch.no_grad(), attention_replaced(model, answer):
        return predict_velocity(model, point.x, point.level, point.text)


def mean_weights(scenario: Sensitivity, raw: Raw) -> dict[int, list[float]]:
    """By bucket, the mean weight of each layer over the measuring seeds."""
    found: dict[int, list[list[float]]] = {}
    known = {str(record["unit"]): record for record in raw.records()}
    for seed in scenario.weighing:
        for step in scenario.at_steps:
            record = known[str(unit(scenario, seed, step))]
            found.setdefault(bucket_of(step / scenario.steps), []).append(record["weights"])
    return {bucket: [sum(each) / len(each) for each in zip(*weights, strict=True)] for bucket, weights in found.items()}
