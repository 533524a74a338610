"""Published methods on captured calls: their own selection, order and blocks, with and without our tail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.calibration.evaluation import Evaluation, LayerCall, Score
from benchmarks.quality.rows import paper
from benchmarks.quality.work import exact_share, solve
from draftattention.draftattn_core import Layout, Policy, TokenGrid
from draftattention.draftattn_core.attention import attend
from draftattention.draftattn_core.backends.call_kind import CallKind
from draftattention.draftattn_core.backends.registry import choose_backend
from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.geometry.layout import LayoutTables
from draftattention.draftattn_core.method.calibatt.energy import block_energy
from draftattention.draftattn_core.method.calibatt.masks import EnergyTarget, MaskVotes, fewest_blocks
from draftattention.draftattn_core.method.calibatt.portable import PortableScores
from draftattention.draftattn_core.method.calibatt.repetition import (
    anchor_work,
    attend_anchors,
    repetition_heads,
)
from draftattention.draftattn_core.method.calibatt.survey import survey
from draftattention.draftattn_core.method.policy import TailName
from draftattention.draftattn_core.method.rules import rettention
from draftattention.draftattn_core.method.rules.call import RuleCall, whole_map
from draftattention.draftattn_core.method.selection import select_blocks
from draftattention.draftattn_core.method.tail.expand import tail_from
from draftattention.draftattn_core.method.tail.formula import tail_key_equivalents
from draftattention.draftattn_core.run.probe import HeadTails, probe_tails
from draftattention.draftattn_core.run.report import Position

TAIL: TailName = "linear1"
MASK_BLOCK = 128


@dataclass(frozen=True)
class Published:
    """A rule as its paper has it.

    Attributes:
        policy: its density is what the target asks for.
        layout: block sizes, order.
        remembers: whether it searches on an earlier evaluation.
        drops_after: its selection asks for a tail, and what it skips is dropped nevertheless.
    """

    name: str
    policy: Policy
    q_block: int = 128
    k_block: int = 64
    order: str = "raster"
    tile: tuple[int, int, int] | None = None
    remembers: bool = False
    drops_after: bool = False

    @property
    def probed(self) -> bool:
        """Whether a run would fit the gain of its tail: not where heads have token orders of their own."""
        return self.policy.tail == TAIL and self.policy.method != "svg" and not self.drops_after

    def layout(self, grid: TokenGrid) -> Layout:
        return Layout(grid, 0, 0, self.q_block, self.k_block, self.tile, self.order)


def published() -> list[Published]:
    """Every rule dropped as published (SVG-EAR has the mean tail of its own), and with our tail behind it."""
    drops = Policy(tail="none", spread=False, keep_own=False)
    the_paper = paper()
    rows = [
        Published("the paper", the_paper.policy, 128, 128, "tile", the_paper.tile),
        Published("SVG", replace(drops, method="svg")),
        Published("Radial", replace(drops, method="radial"), 128, 128),
        Published("AdaSpa", replace(drops, method="adaspa"), 64, 64, remembers=True),
        Published("SVG-EAR's selection, mean tail", replace(drops, method="ear", tail="mean"), order="tile"),
        Published("SVG-EAR's selection, dropped", replace(drops, method="ear"), order="tile"),
        Published(
            "error of our tail, dropped",
            replace(drops, method="tail_error", tail=TAIL),
            order="tile",
            drops_after=True,
        ),
    ]
    ours = [
        replace(
            row, name=f"{row.name.removesuffix(', dropped')} + our tail", policy=replace(row.policy, tail=TAIL),
            drops_after=False,
        )
        for row in rows
        if row.name != "SVG-EAR's selection, mean tail"
    ]  # fmt: skip
    return [*rows, *ours]


def score_published(row: Published, evaluation: Evaluation, before: Evaluation, target: float) -> list[Score]:
    """A rule at a target work; what it kept is counted as it is, some rules come out denser than asked.

    Returns:
        No scores where its tail alone costs more than the target.
    """
    first = evaluation.layers[0]
    layout = row.layout(first.call.grid)
    blocks = -(-first.call.grid.tokens // row.k_block)
    name = row.policy.tail if isinstance(row.policy.tail, str) and not row.drops_after else "none"
    density = target - tail_key_equivalents(name, blocks, first.call.q.shape[-1]) / first.call.grid.tokens
    if density <= 0.0:
        return []
    policy = row.policy.with_density(density)
    scores = []
    for layer, earlier in zip(evaluation.layers, before.layers, strict=True):
        call, state = layer.call, {}
        mine, old = policy, earlier.call
        if row.remembers or row.probed:
            first_call = attend(old.q, old.k, old.v, layout, policy, cache=layer.cache, state=state)
            mine = with_gains(first_call.request, policy, call.layer) if row.probed else policy
        position = None if row.remembers else Position(call.step, evaluation.progress, call.layer, 0)
        found = attend(call.q, call.k, call.v, layout, mine, cache=layer.cache, position=position, state=state)
        if row.drops_after:
            out = _masked(layer, found.request.tables, found.request.keep)
            scores.append(layer.score_output(out, float(found.density()), 0.0))
            continue
        scores.append(layer.score_output(found.out, float(found.density()), found.tail_work()))
    return scores


def with_gains(request: AttendRequest, policy: Policy, seed: int) -> Policy:
    """`policy` with the tail gains that the error probe fits to a call of it."""
    asked = HeadTails.of(policy, request.q.shape[1])
    return probe_tails(request, asked, tail=False, gain=True, seed=seed)[0].put_into(policy)


def score_rettention(evaluation: Evaluation, before: Evaluation, target: float, since: int) -> list[Score]:
    """Re-ttention, its full step being the evaluation before. The work of that step is not counted.

    Args:
        since: evaluations between the first sparse one after the full step and this one.
    """
    scores = []
    for layer, earlier in zip(evaluation.layers, before.layers, strict=True):
        layout = Layout(layer.call.grid, 0, 0, 128, 64, None, "raster")
        tables = layer.cache.get(layout, layer.call.q.device)
        window = _window_of(layer, tables, target)
        if window is None:
            return []
        keep, old = _window(layer, tables, window), earlier.call
        full = F.scaled_dot_product_attention(old.q, old.k, old.v)
        left = rettention.remember(_rule_call(earlier, tables), keep, full, _masked(earlier, tables, keep))
        out = left.corrected(_masked(layer, tables, keep), since)
        scores.append(layer.score_output(out, exact_share(keep, tables), 0.0))
    return scores


def _window_of(layer: LayerCall, tables: LayoutTables, target: float) -> float | None:
    """The window's own density for a work: its blocks are kept whole, so it is less than what it costs."""
    return solve(lambda x: exact_share(_window(layer, tables, x), tables), target, guess=target, tolerance=4e-3)


def _window(layer: LayerCall, tables: LayoutTables, density: float) -> Tensor:
    mask = rettention.window_mask(tables, density)
    return whole_map(mask.expand(1, layer.call.q.shape[1], -1, -1), tables)


def _rule_call(layer: LayerCall, tables: LayoutTables) -> RuleCall:
    call, policy = layer.call, Policy(tail="none", spread=False)
    return RuleCall(call.q, call.k, call.v, tables, policy, policy.of(call.q.shape[1]), layer.scale)


def _masked(layer: LayerCall, tables: LayoutTables, keep: Tensor) -> Tensor:
    call = layer.call
    kind = CallKind(call.q.device, call.q.dtype, call.q.shape[-1], tables.layout.q_block, tables.layout.k_block)
    request = AttendRequest(call.q, call.k, call.v, tables, keep, None, None, layer.scale)
    return choose_backend("auto", kind).attend(request)


def mask_layout(grid: TokenGrid) -> Layout:
    """Of CalibAtt as published: raster order, blocks of one size."""
    return Layout(grid, 0, 0, MASK_BLOCK, MASK_BLOCK, None, "raster")


def energies_of(layer: LayerCall) -> dict[str, Tensor]:
    """What a calibration run leaves of one call: block energies in both layouts, similarity of its spatial rows."""
    call = layer.call
    found = survey(call.q, call.k, layer.cache.get(mask_layout(call.grid), call.q.device), layer.scale)
    ours = block_energy(call.q, call.k, layer.tables, layer.scale).blocks
    return {"raster": found.energy, "ours": ours, "similarity": found.similarity}


Energies = Mapping[tuple[int, int], Mapping[str, Tensor]]
"""Of one calibration run, by (step, layer); see `energies_of`."""


def score_masks(
    evaluation: Evaluation, runs: list[Energies], floor: float, steps: int, *, repeats: bool = True
) -> list[Score]:
    """CalibAtt with its exact masks: voted over runs, at the least mass `floor` (A of its equation 7), nothing else."""
    target, scores = EnergyTarget.for_steps(steps, floor), []
    for layer in evaluation.layers:
        call = layer.call
        at = call.step, call.layer
        tables = layer.cache.get(mask_layout(call.grid), call.q.device)
        votes = MaskVotes.of_shape(call.q.shape[1], tables.q.video, tables.k.video)
        for run in runs:
            votes.add(fewest_blocks(run[at]["raster"].float(), target.at(call.step, steps)))
        keep = votes.decide().unsqueeze(0)
        out, shares = _masked(layer, tables, keep), per_head(keep, tables)
        if repeats:
            flags = torch.tensor(repetition_heads(torch.cat([run[at]["similarity"] for run in runs])))
            if bool(flags.any()):
                some = (x[:, flags] for x in (call.q, call.k, call.v))
                out[:, flags] = attend_anchors(*some, tables, layer.scale)
                shares[flags] = anchor_work(tables)
        scores.append(layer.score_output(out, float(shares.mean()), 0.0))
    return scores


def per_head(keep: Tensor, tables: LayoutTables) -> Tensor:
    """(H,) share of token pairs kept."""
    return torch.tensor([exact_share(keep[:, head : head + 1], tables) for head in range(keep.shape[1])])


def score_portable(
    evaluation: Evaluation, runs: list[Energies], tables_of_runs: LayoutTables, target: float, *, tail: bool
) -> list[Score]:
    """Portable scores in place of the draft, in our layout: per layer and step one volume of displacements.

    Args:
        tables_of_runs: our layout on the grid of the calibration runs.
    """
    scores = []
    for layer in evaluation.layers:
        call = layer.call
        made = PortableScores.for_layout(call.q.shape[1], tables_of_runs)
        for run in runs:
            for (step, index), each in run.items():
                if index == call.layer and step == call.step:
                    made.add(each["ours"].float(), tables_of_runs)
        name: TailName = TAIL if tail else "none"
        policy = replace(layer.settings.policy, tail=name, spread=False)
        work = tail_key_equivalents(name, layer.tables.k.video, call.q.shape[-1]) / call.grid.tokens
        if target <= work:
            return []
        keep = select_blocks(made.volume().scores(layer.tables), layer.tables, policy.with_density(target - work))
        if tail:
            request = replace(layer.request, keep=keep, tail=tail_from(layer.expansion, name))
            policy = with_gains(request, policy, call.layer)
        scores.append(layer.score_kept(keep, policy))
    return scores
