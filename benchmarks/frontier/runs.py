"""One sampling run of one method, through the pack's own diffusers host: its frames and what it spent."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from benchmarks.frontier.core_caches import CoreStepCache
from benchmarks.frontier.methods import Method
from benchmarks.frontier.samplers import SHIFT, sample, scheduler_of
from benchmarks.frontier.work import Ledger
from benchmarks.quality.capture import prompt_of
from demo.flow import predict_velocity
from demo.latent import latent_to_rgb
from demo.sample import initial_noise
from draftattention.draftattn_core import TokenGrid
from draftattention.draftattn_core.hosts.diffusers.apply import apply_draft_attention
from draftattention.draftattn_core.run.report import DenseReason, RunReport
from draftattention.nodes.demo_prompts import prompt_embedding

# Reasons that say the method did not do what its row says.
_UNEXPECTED = frozenset(DenseReason) - {DenseReason.SCHEDULE, DenseReason.DENSE_LAYER, DenseReason.BUDGET}


@dataclass(frozen=True)
class Made:
    """Frames uint8 (T, H, W, 3), and what they cost."""

    frames: Tensor
    ledger: Ledger


def run(model: WanTransformer3DModel, method: Method, grid: TokenGrid, seed: int) -> Made:
    """Sample one video.

    Raises:
        RuntimeError: if a call ran dense for a reason that the method does not have, or an evaluation was lost.
    """
    noise = initial_noise(grid.as_tuple(), seed)
    text = prompt_embedding(prompt_of(seed))
    scheduler = scheduler_of(method.solver, method.steps)
    # Timesteps as `velocity` passes them: those of second-order schedulers are rounded, their levels are not.
    timesteps = [1000 * float(level) for level in scheduler.sigmas[: method.steps]]

    def velocity(x: Tensor, level: float) -> Tensor:
        return predict_velocity(model, x, torch.tensor([level]), text).float()

    known: dict[str, Any] = {"scheduler": scheduler} if method.share is not None else {"timesteps": timesteps}
    with apply_draft_attention(model, method.settings(), **known) as handle:
        if method.core is not None:
            core = CoreStepCache(method.core, method.threshold, SHIFT)
            handle.new_step_cache = lambda: core
        latent = sample(velocity, noise, method.solver, method.steps)
        report = handle.finish_run()
    return Made(torch.from_numpy(latent_to_rgb(latent)[0]), ledger_of(report, method.steps))


def ledger_of(report: RunReport, evaluations: int) -> Ledger:
    """What a run of one branch spent.

    Raises:
        RuntimeError: as `run` does.
    """
    spent: Counter[int] = Counter()
    layers = 1
    for call in report.calls:
        if call.position is None:
            continue
        if call.reason in _UNEXPECTED:
            raise RuntimeError(f"a call ran dense: {call.reason}; {'; '.join(report.notes)}")
        layers = call.position.layers
        spent[call.position.step] += 1
    attention = sum(
        (1.0 if call.density is None else float(call.density) + call.tail_work)
        for call in report.calls
        if call.position is not None
    )
    answered = sum(count for outcome, count in report.outcomes.items() if outcome != "computed")
    computed = report.outcomes["computed"]
    if computed + answered != evaluations or set(spent.values()) != {layers} or len(spent) != computed:
        raise RuntimeError(f"{computed} computed and {answered} answered of {evaluations} evaluations: not all counted")
    return Ledger(computed, answered, attention / layers)
