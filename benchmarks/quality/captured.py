"""Part A: every row on captured calls at real block sizes, at equal work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor
from tqdm import tqdm

from benchmarks.quality.baselines import ordered, reorders
from benchmarks.quality.capture import CapturedCall, capture, prompt_of
from benchmarks.quality.errors import Errors, SampledRows, figures
from benchmarks.quality.peer import kitchen_itself, load_peer, peer_itself
from benchmarks.quality.plan import CapturedPlan, Clock
from benchmarks.quality.raw import WHOLE, Raw, Record, Shard, definition, name_rounds, significant
from benchmarks.quality.rows import Row
from benchmarks.quality.selection import Chosen, Source, choose, probed_tails
from draftattention.draftattn_core import Layout, TableCache, TokenGrid
from draftattention.draftattn_core.run.probe import DEFAULT_ROWS, sample_rows

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
    on_row: Callable[[], object] = lambda: None,
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
        # The error probe's rows, other ones than those the table is about.
        probe = SampledRows(source, source.tables.perm[sample_rows(call.grid.tokens, DEFAULT_ROWS, call.layer)])
        given = source, study, probe
        for row in members:
            source, study, probe = given if not reorders(row) else _in_own_order(row, call, given[0], tokens)
            for target in targets:
                tails = probed_tails(row, source, target, seed=call.layer) if row.auto_tail else None
                chosen = choose(row, source, target, tails)
                if chosen is None:
                    continue
                if row.fits_gain and not row.auto_tail:
                    chosen = replace(chosen, tails=probe.fitted(chosen))
                found = study.errors(chosen)
                measured.append(Measured(row.name, target, name, chosen.exact, chosen.tail_work, found))
                if check_peer and chosen.shared_tail and target == PEER_TARGET:
                    checks += _check_peer(row, target, chosen, study, study.output(chosen))
            on_row()
    return measured, checks


def _in_own_order(
    row: Row, call: CapturedCall, source: Source, tokens: Tensor
) -> tuple[Source, SampledRows, SampledRows]:
    """The call in the order that the row's rule gives some heads: other tokens of these heads are looked at."""
    moved = ordered(row, source)[0]
    probed = moved.tables.perm[sample_rows(call.grid.tokens, DEFAULT_ROWS, call.layer)]
    return moved, SampledRows(moved, tokens), SampledRows(moved, probed)


def _by_layout(rows: Iterable[Row], call: CapturedCall) -> dict[Layout, list[Row]]:
    groups: dict[Layout, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.layout(call.grid), []).append(row)
    return groups


def _check_peer(row: Row, target: float, chosen: Chosen, study: SampledRows, ours: Tensor) -> list[PeerCheck]:
    sol_attn = load_peer()
    if sol_attn is None:
        return []
    source, parameter = study.source, chosen.parameter
    qkv = source.q, source.k, source.v
    if row.order != "raster":
        out = kitchen_itself(*qkv, source.tables.layout, parameter, chosen.tails.gains)
    else:
        how = {"ratio": parameter} if row.kind == "peer_topk" else {"tau": parameter}
        out = peer_itself(sol_attn, *qkv, **how)
    out = out[0].index_select(1, study.tokens)
    difference = float((out - ours).norm() / out.norm())
    return [PeerCheck(row.name, target, difference, figures(out, study.dense, torch.zeros(1)))]


def run_plan(
    model: WanTransformer3DModel,
    plan: CapturedPlan,
    rows: list[Row],
    clock: Clock,
    raw: Raw,
    shard: Shard = WHOLE,
) -> None:
    """Capture and study the calls of `plan` that `raw` lacks, as many as the clock has time for."""
    cache = TableCache(64)
    wanted = [(step, layer) for step in plan.at_steps for layer in plan.layers]
    with tqdm(unit="row", desc="captured calls", total=len(plan.calls) // shard.of * len(rows)) as bar:
        for grid, seed in shard.pick(plan.runs):
            # Read anew for each run: another process may have done it.
            known = _Known(plan, rows, raw)
            missing = {at: known.missing(grid, seed, *at) for at in wanted}
            left = sum(bool(some) for some in missing.values())
            bar.update(len(wanted) * len(rows) - sum(map(len, missing.values())))
            if clock.left(plan.share) < left * known.seconds:
                return
            _study_run(model, plan, (grid, seed), missing, cache, clock, raw, bar.update)


def _study_run(
    model: WanTransformer3DModel,
    plan: CapturedPlan,
    run: tuple[TokenGrid, int],
    missing: dict[tuple[int, int], list[Row]],
    cache: TableCache,
    clock: Clock,
    raw: Raw,
    on_row: Callable[[], object],
) -> None:
    """Study each call of one run as soon as it is captured: `missing` are the rows by (step, layer)."""
    grid, seed = run
    checked = plan.calls[: plan.peer_checks]
    since = clock.used

    def study(call: CapturedCall) -> None:
        nonlocal since
        rows = missing[call.step, call.layer]
        check = (grid, seed, call.step, call.layer) in checked
        found, checks = study_call(
            call, rows, plan.targets, sampled=plan.sampled, cache=cache, check_peer=check, on_row=on_row
        )
        took, since = clock.used - since, clock.used
        raw.append(_record(call, rows, plan.targets, found, checks, took))

    capture(
        model,
        prompt_of(seed),
        grid,
        seed=seed,
        steps=plan.steps,
        at_steps=plan.at_steps,
        layers=plan.layers,
        skip=[at for at, rows in missing.items() if not rows],
        on_call=study,
    )


def _record(
    call: CapturedCall,
    rows: list[Row],
    targets: tuple[float, ...],
    measured: list[Measured],
    checks: list[PeerCheck],
    took: float,
) -> Record:
    at = {(m.row, m.target): [*map(significant, (m.exact, m.tail_work, *_values(m.errors)))] for m in measured}
    return {
        "grid": str(call.grid),
        "seed": call.seed,
        "prompt": prompt_of(call.seed),
        "step": call.step,
        "layer": call.layer,
        "took": round(took, 2),
        # null: cannot run at this target
        "rows": {
            definition(row, call.grid): {"row": row.name, "at": {f"{t:g}": at.get((row.name, t)) for t in targets}}
            for row in rows
        },
        "checks": [
            [definition(row, call.grid), c.target, *map(significant, (c.difference, *_values(c.errors)))]
            for c in checks
            for row in rows
            if row.name == c.row
        ],
    }


def _values(errors: Errors) -> tuple[float, float, float]:
    return errors.relative_l2, errors.worst, errors.recall


class _Known:
    """What a raw file says about the calls of a plan, by call and by what each row does."""

    def __init__(self, plan: CapturedPlan, rows: list[Row], raw: Raw) -> None:
        self.rows = rows
        self.targets = {target: f"{target:g}" for target in plan.targets}
        self.is_row = {grid: {row.name: definition(row, grid) for row in rows} for grid in plan.grids}
        self.found: dict[tuple[str, int, int, int], dict[str, dict[str, list[float] | None]]] = {}
        self.checks: dict[tuple[str, int, int, int], list[list[Any]]] = {}
        took = []
        for record in raw.records():
            if record["prompt"] != prompt_of(record["seed"]):
                continue
            call = (record["grid"], record["seed"], record["step"], record["layer"])
            self.found.setdefault(call, {}).update({key: each["at"] for key, each in record["rows"].items()})
            self.checks.setdefault(call, []).extend(record["checks"])
            if not record["checks"] and len(record["rows"]) == len(rows):
                took.append(record["took"])
        self.seconds = sum(took) / len(took) if took else 0.0

    def missing(self, grid: TokenGrid, seed: int, step: int, layer: int) -> list[Row]:
        """Rows not measured on that call at every target."""
        found, names = self.found.get((str(grid), seed, step, layer), {}), self.is_row[grid]
        return [row for row in self.rows if not self._whole(found.get(names[row.name]))]

    def _whole(self, at: dict[str, list[float] | None] | None) -> bool:
        return at is not None and all(name in at for name in self.targets.values())

    def measured(self, grid: TokenGrid, seed: int, step: int, layer: int) -> Iterator[Measured]:
        call = (str(grid), seed, step, layer)
        for row in self.rows:
            at = self.found[call][self.is_row[grid][row.name]]
            for target, name in self.targets.items():
                values = at[name]
                if values is not None:
                    exact, tail_work, *errors = values
                    yield Measured(row.name, target, call, exact, tail_work, Errors(*errors))

    def peer_checks(self, grid: TokenGrid, seed: int, step: int, layer: int) -> Iterator[PeerCheck]:
        names = {key: name for name, key in self.is_row[grid].items()}
        for key, target, difference, *errors in self.checks[str(grid), seed, step, layer]:
            if key in names:
                yield PeerCheck(names[key], target, difference, Errors(*errors))


def collect(plan: CapturedPlan, rows: list[Row], raw: Raw) -> tuple[list[Measured], list[PeerCheck], list[str]]:
    """What `raw` holds of `plan`: only calls on which every row was measured, so that all means are over the same.

    Returns:
        Measurements, checks of comfy-kitchen, and in words what is left out and why.
    """
    known = _Known(plan, rows, raw)
    whole = [call for call in plan.calls if not known.missing(*call)]
    partly = [call for call in plan.calls if call not in whole and (str(call[0]), *call[1:]) in known.found]
    measured = [item for call in whole for item in known.measured(*call)]
    checks = [check for call in whole for check in known.peer_checks(*call)]
    left_out = []
    if len(whole) < len(plan.calls):
        calls_of = Counter((grid, seed) for grid, seed, *_ in whole)
        per_run = len(plan.at_steps) * len(plan.layers)
        left_out.append(
            f"captured calls: {len(whole)} of {len(plan.calls)} measured; not or not all of (grid, seed): "
            + name_rounds(run for run in plan.runs if calls_of[run] < per_run)
        )
    if partly:
        left_out.append(f"captured calls: {len(partly)} more on which some rows are not measured (in their last form)")
    counts = Counter((item.row, item.target) for item in measured)
    for target in plan.targets:
        dear = [row.name for row in rows if counts[row.name, target] < len(whole)]
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
