"""Part A: every row on captured calls at real block sizes, at equal work."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor
from tqdm import tqdm

from draftattn_core import Layout, TableCache
from draftattn_core.policy import TailName
from draftattn_core.probe import sample_rows

from .capture import CapturedCall, capture, prompt_of
from .errors import Errors, SampledRows, figures
from .peer import load_peer, peer_itself
from .plan import CapturedPlan, Clock
from .rows import Row
from .selection import Source, choose, probed_tails

# The probe of `auto_tail` runs once per call, at this share of work.
PROBE_TARGET = 0.10
# comfy-kitchen itself runs beside its formula at this share of work; its reference is O(L^2).
PEER_TARGET = 0.10


@dataclass(frozen=True)
class Measured:
    """One row at one target in one captured call."""

    row: str
    target: float
    call: tuple[str, int, int, int]
    exact: float
    tail_work: float
    errors: Errors

    @property
    def executed(self) -> float:
        return self.exact + self.tail_work


@dataclass(frozen=True)
class PeerCheck:
    """comfy-kitchen itself beside our formula of it on one call: largest difference relative to the output's norm."""

    row: str
    target: float
    difference: float
    errors: Errors


def study_call(
    call: CapturedCall,
    rows: Iterable[Row],
    targets: Iterable[float],
    *,
    sampled: int,
    cache: TableCache,
    check_peer: bool = False,
    on_row: Callable[[], None] = lambda: None,
) -> tuple[list[Measured], list[PeerCheck]]:
    """Every row at every target on one call. Rows that cannot run at a target are missing from the result."""
    targets = tuple(targets)
    tokens = cache.get(Layout(call.grid), call.q.device).perm[
        sample_rows(call.grid.tokens, sampled, 1000 * call.seed + call.step).to(call.q.device)
    ]
    name = (str(call.grid), call.seed, call.step, call.layer)
    measured: list[Measured] = []
    checks: list[PeerCheck] = []
    for layout, members in _by_layout(rows, call).items():
        source = Source(call.q, call.k, call.v, cache.get(layout, call.q.device))
        study = SampledRows(source, tokens)
        for row in members:
            tails: tuple[TailName, ...] | None = None
            if row.auto_tail:
                tails = probed_tails(row, source, PROBE_TARGET, seed=call.layer)
            for target in targets:
                chosen = choose(row, source, target, tails)
                if chosen is None:
                    continue
                found = study.errors(chosen)
                measured.append(Measured(row.name, target, name, chosen.exact, chosen.tail_work, found))
                if check_peer and chosen.shared_tail and target == PEER_TARGET:
                    checks += _check_peer(row, target, chosen.parameter, study, study.output(chosen))
            on_row()
    return measured, checks


def _by_layout(rows: Iterable[Row], call: CapturedCall) -> dict[Layout, list[Row]]:
    groups: dict[Layout, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.layout(call.grid), []).append(row)
    return groups


def _check_peer(row: Row, target: float, parameter: float, study: SampledRows, ours: Tensor) -> list[PeerCheck]:
    sol_attn = load_peer()
    if sol_attn is None:
        return []
    source = study.source
    how = {"ratio": parameter} if row.kind == "peer_topk" else {"tau": parameter}
    out = peer_itself(sol_attn, source.q, source.k, source.v, **how)[0].index_select(1, study.tokens)
    difference = float((out - ours).norm() / out.norm())
    return [PeerCheck(row.name, target, difference, figures(out, study.dense, torch.zeros(1)))]


def run_plan(
    model: WanTransformer3DModel, plan: CapturedPlan, rows: list[Row], clock: Clock
) -> tuple[list[Measured], list[PeerCheck], list[str]]:
    """Capture and study the calls of `plan`, as many as the clock has time for.

    Returns:
        Measurements, checks of comfy-kitchen, and in words what was left out and why.
    """
    measured: list[Measured] = []
    checks: list[PeerCheck] = []
    cache = TableCache(64)
    per_run = len(plan.at_steps) * len(plan.layers)
    studied, longest = 0, 0.0
    with tqdm(total=len(plan.runs) * per_run * len(rows), unit="row", desc="captured calls") as bar:
        for grid, seed in plan.runs:
            if studied and clock.left(plan.share) < per_run * longest:
                break
            calls = capture(
                model, prompt_of(seed), grid, seed=seed, steps=plan.steps, at_steps=plan.at_steps, layers=plan.layers
            )
            for call in calls:
                start = clock.used
                found, checked = study_call(
                    call,
                    rows,
                    plan.targets,
                    sampled=plan.sampled,
                    cache=cache,
                    check_peer=studied < plan.peer_checks,
                    on_row=bar.update,
                )
                measured += found
                checks += checked
                studied += 1
                longest = max(longest if studied > plan.peer_checks else 0.0, clock.used - start)
    wanted = len(plan.runs) * per_run
    left_out = []
    if studied < wanted:
        runs = plan.runs[studied // per_run :]
        left_out.append(
            f"captured calls: out of time after {studied} of {wanted}; left out (grid, seed): "
            + ", ".join(f"({grid}, {seed})" for grid, seed in runs)
        )
    counts = {(item.row, item.target): 0 for item in measured}
    for item in measured:
        counts[(item.row, item.target)] += 1
    for target in plan.targets:
        dear = [row.name for row in rows if counts.get((row.name, target), 0) < studied]
        if dear:
            left_out.append(
                f"captured calls at {target:.0%}, rows whose tail and forced blocks alone cost more than that in some "
                f"call: {', '.join(dear)}"
            )
    return measured, checks, left_out


@dataclass(frozen=True)
class Summary:
    """A row at a target over all calls it was measured on."""

    row: str
    target: float
    calls: int
    executed: float
    tail_work: float
    relative_l2: float
    worst: float
    recall: float


def summarise(measured: Iterable[Measured]) -> list[Summary]:
    """Means over calls, in order of first appearance."""
    cells: dict[tuple[str, float], list[Measured]] = {}
    for item in measured:
        cells.setdefault((item.row, item.target), []).append(item)

    def mean(items: list[Measured], value: Callable[[Measured], float]) -> float:
        return sum(map(value, items)) / len(items)

    return [
        Summary(
            row,
            target,
            len(items),
            mean(items, lambda m: m.executed),
            mean(items, lambda m: m.tail_work),
            mean(items, lambda m: m.errors.relative_l2),
            mean(items, lambda m: m.errors.worst),
            mean(items, lambda m: m.errors.recall),
        )
        for (row, target), items in cells.items()
    ]
