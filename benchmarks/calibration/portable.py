"""Portable masks beside the exact ones that they come from: recall, error, pictures, on their own grid and another.

Exact masks are CalibAtt's without repetition heads: raster order, voted over runs. Their portable forms are made of the
same runs' block energies in our layout, one for each layer and bucket of progress, and get the density of the exact
masks' own step, layer and head: what differs between two rows is which pairs they keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.calibration.evaluation import LayerCall
from benchmarks.calibration.published import TAIL, Energies, mask_layout, per_head, with_gains
from benchmarks.quality.raw import significant
from benchmarks.quality.work import exact_share, tail_shares
from draftattention.draftattn_core import Policy, Settings, TableCache, TokenGrid
from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.geometry.layout import BlockTable, LayoutTables
from draftattention.draftattn_core.method.calibatt.displacement import (
    DisplacementMask,
    DisplacementScores,
    keep_displacements,
)
from draftattention.draftattn_core.method.calibatt.intervals import group_steps, intervals_of, share_masks
from draftattention.draftattn_core.method.calibatt.masks import EnergyTarget, MaskVotes, fewest_blocks
from draftattention.draftattn_core.method.calibatt.portable import PortableScores, PortableVolume
from draftattention.draftattn_core.method.rules.call import whole_map
from draftattention.draftattn_core.method.selection import select_blocks, select_from_draft
from draftattention.draftattn_core.method.tail.expand import expand_blocks, tail_from
from draftattention.draftattn_core.run.figures import bucket_of
from draftattention.draftattn_core.run.row_blocks import RowBlocks

EXACT, PORTABLE, SETS, UNIFORM = "exact masks", "portable scores", "sets of displacements", "uniform, our draft"
KINDS = (EXACT, PORTABLE, SETS, UNIFORM)
# Squared error dropped, the same with our tail, squared norm, recall, exact work, work of the tail.
Judged = list[float]


@dataclass(eq=False)
class Masks:
    """What calibration runs of one grid leave.

    Attributes:
        steps: of a run. exact: by (step, layer) the voted mask (H, R, C) bool, raster order.
        densities: by (step, layer) each head's share of token pairs in it.
        volumes, sets: the portable forms by (bucket, layer), in our layout.
    """

    steps: int
    exact: Mapping[tuple[int, int], Tensor]
    densities: Mapping[tuple[int, int], tuple[float, ...]]
    volumes: Mapping[tuple[int, int], PortableVolume]
    sets: Mapping[tuple[int, int], DisplacementMask]

    def keep(self, kind: str, layer: LayerCall, cache: TableCache) -> tuple[LayoutTables, Tensor]:
        """The tables that a kind computes a call in, and what it keeps (1, H, q blocks, k blocks)."""
        call = layer.call
        at, place = (call.step, call.layer), (bucket_of(call.step / self.steps), call.layer)
        if kind == EXACT:
            return cache.get(mask_layout(call.grid), call.q.device), self.exact[at].unsqueeze(0)
        if kind == SETS:
            return layer.tables, whole_map(self.sets[place].mask(layer.tables).unsqueeze(0), layer.tables)
        policy = layer.settings.policy
        if kind == PORTABLE:
            policy = replace(policy, spread=False, density=self.densities[at])
            return layer.tables, select_blocks(self.volumes[place].scores(layer.tables), layer.tables, policy)
        each = [density for (step, _), known in self.densities.items() if step == call.step for density in known]
        policy = policy.with_density(sum(each) / len(each))
        return layer.tables, select_from_draft(layer.draft, layer.tables, policy, layer.scale)

    def bytes(self) -> dict[str, int]:
        """What votes, bits, lists of intervals, lists that like steps share, and both portable forms take."""
        layers = sorted({layer for _, layer in self.exact})
        shared: dict[int, Tensor] = {}
        for layer in layers:
            masks = [self.exact[step, layer] for step in range(self.steps)]
            shared |= {id(mask): mask for mask in share_masks(masks, group_steps(masks))}
        return {
            "votes": sum(mask.numel() for mask in self.exact.values()),
            "bits": sum(-(-mask.numel() // 8) for mask in self.exact.values()),
            "lists": sum(intervals_of(mask).bytes for mask in self.exact.values()),
            "shared lists": sum(intervals_of(mask).bytes for mask in shared.values()),
            "scores": sum(volume.bytes for volume in self.volumes.values()),
            "sets": sum(mask.bytes for mask in self.sets.values()),
        }


def masks_of(runs: Sequence[Energies], grid: TokenGrid, steps: int, mass: float, cache: TableCache) -> Masks:
    """Masks and their portable forms from the energies of all steps of some runs on one grid."""
    raster, ours = cache.get(mask_layout(grid), "cpu"), cache.get(Settings().layout(grid), "cpu")
    target = EnergyTarget.for_steps(steps, mass)
    exact, densities = {}, {}
    volumes: dict[tuple[int, int], PortableScores] = {}
    for at in runs[0]:
        heads = runs[0][at]["raster"].shape[1]
        votes = MaskVotes.of_shape(heads, raster.q.video, raster.k.video)
        known = volumes.setdefault((bucket_of(at[0] / steps), at[1]), PortableScores.for_layout(heads, ours))
        for run in runs:
            votes.add(fewest_blocks(run[at]["raster"].float(), target.at(at[0], steps)))
            known.add(run[at]["ours"].float(), ours)
        exact[at] = votes.decide()
        densities[at] = tuple(per_head(exact[at].unsqueeze(0), raster).tolist())
    sets = {}
    for (bucket, layer), known in volumes.items():
        counts = DisplacementScores.of_reach(known.sums.shape[0], known.reach, known.cell)
        inside = [at for at in exact if at[1] == layer and bucket_of(at[0] / steps) == bucket]
        for at in inside:
            for run in runs:
                counts.add(run[at]["ours"].float(), ours)
        means = [sum(each) / len(inside) for each in zip(*(densities[at] for at in inside), strict=True)]
        sets[bucket, layer] = keep_displacements(counts, tuple(means))
    return Masks(steps, exact, densities, {at: one.volume() for at, one in volumes.items()}, sets)


def requested(layer: LayerCall, tables: LayoutTables, keep: Tensor, policy: Policy | None = None) -> AttendRequest:
    """A call under a selection in any layout, with the tail of `policy` behind it; None for nothing."""
    call = layer.call
    bare = AttendRequest(call.q, call.k, call.v, tables, keep, None, None, layer.scale)
    if policy is None:
        return bare
    expansion = layer.expansion
    if tables is not layer.tables:
        expansion = expand_blocks(call.k, call.v, tables, (TAIL,), spread=False)
    values = policy.of(keep.shape[1])
    return replace(bare, tail=tail_from(expansion, values.tails, values.gains))


def fitted(layer: LayerCall, tables: LayoutTables, keep: Tensor) -> Policy:
    """Our tail with the gains that the probe fits to a call under a selection."""
    plain = Policy(tail=TAIL)
    return with_gains(requested(layer, tables, keep, plain), plain, layer.call.layer)


def with_energies(layer: LayerCall) -> tuple[Tensor, dict[str, Tensor]]:
    """Dense output of a call, and the block energies of `energies_of` from the same softmax map.

    On so small a grid the whole map fits into memory, and this costs little more than the dense call.
    """
    call = layer.call
    weights = (layer.scale * call.q @ call.k.transpose(-1, -2)).softmax(-1)
    found = {}
    for name, tables in (("raster", layer.cache.get(mask_layout(call.grid), call.q.device)), ("ours", layer.tables)):
        rows, columns = (_members(tables, table) for table in (tables.q, tables.k))
        found[name] = rows / rows.sum(-1, keepdim=True) @ (weights @ columns.transpose(0, 1))
    return weights @ call.v, found


def _members(tables: LayoutTables, table: BlockTable) -> Tensor:
    """(blocks, L): 1 where a host token lies in a video block."""
    member = torch.zeros(table.video, tables.layout.tokens)
    member[table.of_token, tables.perm] = 1.0
    return member


def judge(layer: LayerCall, tables: LayoutTables, keep: Tensor) -> Judged:
    """A selection in any layout on the judged rows of a call."""
    request = requested(layer, tables, keep, fitted(layer, tables, keep))
    rows = RowBlocks.of(request, tables.perm.argsort()[layer.tables.perm[layer.positions]])
    kept, exact = keep[:, :, rows.q_block], rows.exact()
    outs = (rows.split(kept, tail).output() for tail in (None, request.tail))
    wrong = [(out - exact).square().sum(-1).mean(-1).sum() for out in outs]
    recall = (rows.logits.softmax(-1) * kept).sum(-1).mean()
    work = tail_shares((TAIL,), tables, layer.call.q.shape[-1])[0]
    figures = (*wrong, exact.square().sum(-1).mean(-1).sum(), recall, exact_share(keep, tables), work)
    return [significant(float(x)) for x in figures]
