"""From a row and a target share of work to kept blocks and tails, for one call."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from benchmarks.quality.peer import peer_keep_tau, peer_keep_topk, pooled_scores, sol_keep
from benchmarks.quality.rows import Row
from benchmarks.quality.work import exact_share, solve, tail_shares
from draftattention.draftattn_core import Layout
from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.geometry.layout import LayoutTables, build_tables
from draftattention.draftattn_core.method.draft import Draft, draft_logits, make_draft
from draftattention.draftattn_core.method.policy import TailName
from draftattention.draftattn_core.method.rules import rule_of
from draftattention.draftattn_core.method.selection import select_blocks
from draftattention.draftattn_core.method.tail.expand import make_tail
from draftattention.draftattn_core.run.probe import HeadTails, probe_tails
from draftattention.kernels.types import Tail

# tau beyond which comfy-kitchen's threshold keeps the neighbours only, for every call seen
_TAU_RANGE = 8.0


@dataclass
class Source:
    """One call in one layout, with what several rows need of it, made when first asked for."""

    q: Tensor
    k: Tensor
    v: Tensor
    tables: LayoutTables
    _drafts: dict[bool, Draft] = field(default_factory=dict)
    _tails: dict[tuple[TailName, ...], Tail | None] = field(default_factory=dict)
    _mass: Tensor | None = None

    @property
    def heads(self) -> int:
        return self.q.shape[1]

    @property
    def scale(self) -> float:
        return float(self.q.shape[-1] ** -0.5)

    def draft(self, spread: bool = False) -> Draft:
        if spread not in self._drafts:
            self._drafts[spread] = make_draft(self.q, self.k, self.tables, spread=spread)
        return self._drafts[spread]

    def tail(self, names: tuple[TailName, ...], gains: tuple[float, ...] = ()) -> Tail | None:
        if names not in self._tails:
            self._tails[names] = make_tail(self.k, self.v, self.tables, names)
        tail = self._tails[names]
        if tail is None or not any(gains):
            return tail
        return replace(tail, log_weight=tail.log_weight + torch.tensor(gains, device=tail.log_weight.device)[:, None])

    def block_mass(self) -> Tensor:
        """Exact softmax mass of every block pair, mean over the query block's rows: (B, H, q blocks, k blocks)."""
        if self._mass is None:
            self._mass = block_mass(self.q, self.k, self.tables, self.scale)
        return self._mass

    def request(self, chosen: Chosen) -> AttendRequest:
        tail = self.tail(chosen.tails.names, chosen.tails.gains)
        request = AttendRequest(self.q, self.k, self.v, self.tables, chosen.keep, tail, None, self.scale)
        return replace(request, shared_tail=chosen.shared_tail)


@dataclass(frozen=True)
class Chosen:
    """What a row does in one call.

    Attributes:
        keep: (B, H, q blocks, k blocks) bool.
        tails: one per head, and their gains.
        exact, tail_work: shares of dense work; their sum is the executed density of the row.
        parameter: what the solver found (density, or comfy-kitchen's ratio or tau).
        shared_tail: the tail is computed from the mean query of each block, as comfy-kitchen does.
    """

    keep: Tensor
    tails: HeadTails
    exact: float
    tail_work: float
    parameter: float
    shared_tail: bool = False


def block_mass(q: Tensor, k: Tensor, tables: LayoutTables, scale: float) -> Tensor:
    """Exact softmax mass between blocks, row by row of query blocks: never a whole L x L map."""
    q, k = (x.index_select(2, tables.perm).float() for x in (q, k))
    batch, heads, length, _ = q.shape
    table = tables.k
    mass = q.new_zeros(batch, heads, tables.q.video, table.video)
    padded = table.video * table.size
    for row in range(tables.q.video):
        rows = q[:, :, tables.q.bounds[row] : tables.q.bounds[row + 1]] * scale
        weights = torch.matmul(rows, k.transpose(-1, -2)).softmax(-1).mean(2)
        weights = torch.nn.functional.pad(weights, (0, padded - length))
        mass[:, :, row] = weights.view(batch, heads, table.video, table.size).sum(-1)
    return mass


def cell_scores(source: Source, *, softmax: bool, cell: int = 16) -> Tensor:
    """Log of the mass of block pairs estimated from cells of `cell` tokens: (B, H, q blocks, k blocks).

    With `softmax` each query cell's row is normalised before the cells of a query block are averaged, as true mass is;
    otherwise the exponentials themselves are summed.
    """
    # The row's own walk, cut finer: only the cuts of this layout are used.
    finer = Layout(source.tables.layout.grid, q_block=cell, k_block=cell, order="raster")
    cells = replace(build_tables(finer, source.q.device), perm=source.tables.perm, inverse=source.tables.inverse)
    logits = draft_logits(make_draft(source.q, source.k, cells, spread=False), cells, source.scale)
    rows, columns = source.tables.q, source.tables.k
    per_row, per_column = rows.size // cell, columns.size // cell
    short = (0, columns.video * per_column - logits.shape[3], 0, rows.video * per_row - logits.shape[2])
    logits = torch.nn.functional.pad(logits, short, value=-torch.inf)
    logits = logits.unflatten(3, (columns.video, per_column)).unflatten(2, (rows.video, per_row))
    if softmax:
        # A query cell past the end has no weight.
        logits = logits - logits.flatten(4).logsumexp(-1)[..., None, None].nan_to_num(neginf=0.0)
    return logits.logsumexp((3, 5)).clamp_min(-1e4)


def _row_densities(density: float, columns: int, heads: int) -> tuple[float, ...]:
    """Densities per head that `round(density * columns)` turns into floor and ceil counts whose mean is met closest."""
    total = round(density * columns * heads)
    return tuple((total // heads + (head < total % heads)) / columns for head in range(heads))


def _solve_policy(row: Row, source: Source, tails: HeadTails, target: float) -> Chosen | None:
    tables = source.tables
    columns = tables.k.video
    policy = tails.put_into(row.policy)
    if row.scores == "true_mass":
        scores = source.block_mass().clamp_min(1e-30).log()
    elif row.scores != "draft":
        scores = cell_scores(source, softmax=row.scores == "cells_softmax")
    else:
        scores = draft_logits(source.draft(policy.spread), tables, source.scale)
    shares = tail_shares(tails.names, tables, source.q.shape[-1])
    mean_share = sum(shares) / len(shares)
    room = target - mean_share

    def keep_at(density: float) -> Tensor:
        if policy.method == "top_p":
            return select_blocks(scores, tables, replace(policy, top_p=density, density=max(0.0, room)))
        if policy.method == "row":
            return select_blocks(scores, tables, policy.with_density(_row_densities(density, columns, source.heads)))
        # A head with a dearer tail gets fewer blocks.
        each = tuple(min(1.0, max(0.0, density + mean_share - share)) for share in shares)
        return select_blocks(scores, tables, policy.with_density(each))

    found = solve(lambda x: exact_share(keep_at(x), tables), room, guess=0.5 if policy.method == "top_p" else room)
    if found is None:
        return None
    keep = keep_at(found)
    return Chosen(keep, tails, exact_share(keep, tables), mean_share, found)


def _solve_strips(row: Row, source: Source, tails: HeadTails, target: float) -> Chosen | None:
    tables = source.tables
    shares = tail_shares(tails.names, tables, source.q.shape[-1])
    tail_work = sum(shares) / len(shares)
    if row.kind != "sol":
        # One tail per query block instead of one per query.
        tail_work /= tables.q.size
    scores = pooled_scores(source.draft())

    def keep_at(x: float) -> Tensor:
        if row.kind == "sol":
            return sol_keep(scores, x)
        if row.kind == "peer_topk":
            return peer_keep_topk(scores, x)
        return peer_keep_tau(source.draft(), source.scale, parameter(x))

    def parameter(x: float) -> float:
        return _TAU_RANGE * (1 - 2 * x) if row.kind == "peer_tau" else x

    room = target - tail_work
    guess = 0.5 - 1.3 / (2 * _TAU_RANGE) if row.kind == "peer_tau" else room
    found = solve(lambda x: exact_share(keep_at(x), tables), room, guess=guess)
    if found is None:
        return None
    keep = keep_at(found)
    return Chosen(keep, tails, exact_share(keep, tables), tail_work, parameter(found), row.kind != "sol")


def choose(row: Row, source: Source, target: float, tails: HeadTails | None = None) -> Chosen | None:
    """Blocks and tails of `row` whose exact pairs and tail together cost `target` of dense work.

    Args:
        tails: one per head and their gains, to override the row's own.

    Returns:
        None if the row's tail and its forced blocks alone cost more than that.
    """
    found = HeadTails.of(row.policy, source.heads) if tails is None else tails
    if row.kind == "policy":
        if rule_of(row.policy.method).ranking is None:
            # Beside this module, which it needs itself.
            from benchmarks.quality.baselines import choose_by_rule

            return choose_by_rule(row, source, target, found)
        return _solve_policy(row, source, found, target)
    if row.kind == "rettention":
        return None
    return _solve_strips(row, source, found, target)


def probed_tails(row: Row, source: Source, target: float, seed: int) -> HeadTails:
    """What the error probe finds for each head, at the selection the row's own tail leaves room for."""
    asked = HeadTails.of(row.policy, source.heads)
    chosen = choose(row, source, target)
    if chosen is None:
        return asked
    return probe_tails(source.request(chosen), asked, tail=row.auto_tail, gain=row.auto_gain, seed=seed)[0]
