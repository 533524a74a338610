"""What the checks of skipped steps share: Skip Steps on a model, and its runs held against those that skip nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import host
import torch
from plain_spread import euler_put_right
from toy_runs import difference, run

STEPS = 12
FORECAST: dict[str, Any] = {"rule": "forecast", "threshold": 0.1}
# Settings of Skip Steps that `compared` takes.
SKIP = ("rule", "threshold", "first", "max_skips", "share", "max_forecast_error")
SPREAD: dict[str, Any] = {"rule": "spread", "share": 0.4}
EASYCACHE: dict[str, Any] = {"rule": "easycache", "threshold": 0.2}
# On the calm toy model: how far a run by each rule may end from the one without skipping.
RULES: tuple[tuple[dict[str, Any], float], ...] = ((EASYCACHE, 0.2), (SPREAD, 0.04), (FORECAST, 0.04))
SHORT_TEXT = [[torch.zeros(1, 5, 64), {}]]


@dataclass(frozen=True)
class Asked:
    """One call of the model that was computed.

    Attributes:
        sigma: its noise level. kinds: `cond_or_uncond` of the host.
    """

    sigma: float
    kinds: tuple[int, ...]


def settings(rule: str = "forecast", threshold: float = 0.1, first: int = 3, **more: Any) -> Any:
    return host.pack("draftattn_core.run.step_cache").StepCacheSettings(rule, threshold, first, **more)


def skipping(model: Any, **given: Any) -> tuple[Any, Any]:
    """A model under Skip Steps, and the handle of its reports."""
    found: tuple[Any, Any] = host.pack("nodes.host.adapter").apply_skip_steps(model, settings(**given))
    return found


def counted(model: Any, name: str = "check") -> tuple[Any, list[Asked]]:
    """The model, and a list that grows with every call of its network.

    Args:
        name: of what counts; those of one model are told apart by theirs.
    """
    calls: list[Asked] = []

    def count(executor: Any, x: Any, t: Any, *args: Any, **kwargs: Any) -> Any:
        options = next(value for value in (*args, *kwargs.values()) if isinstance(value, dict) and "sigmas" in value)
        calls.append(Asked(float(options["sigmas"][0]), tuple(options["cond_or_uncond"])))
        return executor(x, t, *args, **kwargs)

    patched = model.clone()
    patched.add_wrapper_with_key("apply_model", name, count)
    return patched, calls


def lora(seed: int) -> dict[str, torch.Tensor]:
    """Weights of a LoRA on the queries of one layer."""
    generator = torch.Generator().manual_seed(seed)
    name = "diffusion_model.blocks.0.self_attn.q"
    down, up = (torch.randn(shape, generator=generator) for shape in ((4, 128), (128, 4)))
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}


@dataclass(frozen=True)
class Compared:
    """A run with Skip Steps beside one without.

    Attributes:
        off: relative L2 difference of their latents. calls: of the network. report: of the run.
    """

    off: float
    calls: list[Asked]
    report: Any


def compared(
    model: Any, *, each: int = 1, windows: bool = False, sample: Callable[..., torch.Tensor] = run, **given: Any
) -> Compared:
    """Sample a model with and without Skip Steps, having checked what must hold for every run: threshold 0, and a plan
    of all steps, is the model to the bit; some calls are answered without the network, and every call is counted; there
    is one decision per evaluation (and context window), in order.

    Args:
        each: calls of the network per evaluation. windows: whether the run has context windows.
        sample: runs a model, by default as `run` does.
        given: for `sample`, but for what `SKIP` names, which is for Skip Steps.
    """
    skip = {name: given.pop(name) for name in SKIP if name in given}
    more = {"steps": STEPS, **given}
    bare, every = counted(model)
    plain = sample(bare, **more)
    exact, handle = skipping(model, **{**skip, "threshold": 0.0, "share": 1.0})
    exact, calls = counted(exact)
    assert torch.equal(sample(exact, **more), plain), "computing everything is not the model to the bit"
    assert calls == every and handle.report.outcomes == {"computed": len(every)}, handle.report.outcomes
    patched, handle = skipping(model, **skip)
    patched, calls = counted(patched)
    out = sample(patched, **more)
    report = handle.report
    assert report.notes == [], report.notes
    assert report.outcomes["computed"] == len(calls) and sum(report.outcomes.values()) == len(every), report.outcomes
    assert report.skipped > 0 and len(calls) < len(every), report.summary()
    decided = [made.index for made in report.decisions]
    assert len(decided) == len(every) // each and decided == sorted(decided), decided
    assert windows or decided == list(range(len(decided))), decided
    assert sum(made.branches_computed + made.branches_skipped for made in report.decisions) == sum(
        len(call.kinds) for call in every
    )
    assert torch.isfinite(out).all() and out.shape == plain.shape
    return Compared(difference(out, plain), calls, report)


@contextmanager
def put_right(share: float) -> Iterator[None]:
    """The host's euler, as long as this lasts, is a plain restatement of `spread`."""
    import comfy.k_diffusion.sampling as sampling

    planned = host.pack("draftattn_core.run.step_cache.spread").planned_steps

    def sample_euler(model: Any, x: Any, sigmas: Any, extra_args: Any = None, **_: Any) -> Any:
        def velocity(x: Any, step: int) -> Any:
            return (x - model(x, sigmas[step] * x.new_ones(x.shape[0]), **extra_args)) / sigmas[step]

        return euler_put_right(velocity, x, sigmas.tolist(), planned(len(sigmas) - 1, share))

    original, sampling.sample_euler = sampling.sample_euler, sample_euler
    try:
        yield
    finally:
        sampling.sample_euler = original
