"""CalibAtt (arXiv 2603.05503) and its portable form as rules: no draft, no routing, masks come from a calibration.

As published: raster order, no tail, blocks of one size, one mask per (step, layer, head); repetition heads are computed
from anchor rows instead of a mask. The masks hold on the grid and for the number of steps they were made for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...geometry.layout import Layout, LayoutTables
from ..calibatt.displacement import DisplacementMask
from ..calibatt.intervals import Intervals
from ..calibatt.portable import PortableVolume
from ..calibatt.repetition import ANCHORS, attend_anchors
from ..policy import Policy
from ..selection import select_blocks
from .call import RuleCall, heads_of, whole_map

At = tuple[int, int]
"""Step and layer, from 0."""


@dataclass(frozen=True)
class Calibrated:
    """Masks of a model on one grid.

    Attributes:
        layout: geometry of the calls they were made for; their number of extra tokens may differ.
        steps: steps of the run they were made for.
        lists: kept video blocks (H, R, n, 2) of every (step, layer), on the device of the calls (see `to`); steps that
            share a list share the object.
        repetition: per (step, layer) which heads are repetition heads; missing for none.
        anchors: anchor rows per frame of those heads.
    """

    layout: Layout
    steps: int
    lists: Mapping[At, Intervals]
    repetition: Mapping[At, tuple[bool, ...]] = field(default_factory=dict)
    anchors: int = ANCHORS

    @property
    def bytes(self) -> int:
        """Size of the lists, shared ones once."""
        return sum({id(one): one.bytes for one in self.lists.values()}.values())

    def to(self, device: torch.device | str) -> Calibrated:
        """The same with its lists on a device, loaded once for all calls."""
        moved = {id(one): Intervals(one.bounds.to(device), one.columns) for one in self.lists.values()}
        return replace(self, lists={at: moved[id(one)] for at, one in self.lists.items()})

    def check(self, tables: LayoutTables) -> None:
        """Raises ValueError with what to do where the masks do not fit a call."""
        mine, other = self.layout, tables.layout
        if mine.grid != other.grid:
            raise ValueError(
                f"these masks were calibrated on the grid {mine.grid}, the call has {other.grid}: calibrate on that "
                "grid, or use portable masks, which hold on any"
            )
        if any(getattr(mine, name) != getattr(other, name) for name in ("order", "q_block", "k_block", "tile_shape")):
            raise ValueError(f"these masks are for the layout {mine}, the call has {other}: use that order and blocks")

    def at(self, call: RuleCall) -> At:
        """Step and layer of a call; raises ValueError if it has none or they were not calibrated."""
        if call.position is None:
            raise ValueError("calibrated masks need to know the step and the layer, which this host does not tell")
        at = call.position.step, call.position.layer
        if at not in self.lists:
            raise ValueError(
                f"step {at[0] + 1}, layer {at[1]} was not calibrated: these masks are for runs of {self.steps} steps"
            )
        return at

    def select(self, call: RuleCall) -> Tensor:
        """Kept block pairs of a call; rows of repetition heads keep their lists, which `replaced` makes void."""
        self.check(call.tables)
        lists = self.lists[self.at(call)]
        part = heads_of(call, lists.bounds.shape[0])
        keep = Intervals(lists.bounds[part], lists.columns).mask()
        return whole_map(keep.expand(call.q.shape[0], -1, -1, -1), call.tables)

    def replaced(self, call: RuleCall) -> tuple[tuple[int, ...], Tensor | None]:
        """Heads of the call that are replaced altogether, and their output (B, heads, L, D); None without any."""
        flags = self.repetition.get(self.at(call), ())
        mine = flags[heads_of(call, len(flags))] if flags else ()
        heads = tuple(head for head, repeats in enumerate(mine) if repeats)
        if not heads:
            return (), None
        # A list of Python integers as an index would be copied to the device with a wait; slices are views.
        q, k, v = (torch.stack([x[:, head] for head in heads], 1) for x in (call.q, call.k, call.v))
        out = attend_anchors(q, k, v, call.tables, call.scale, key_bias=call.key_bias, anchors=self.anchors)
        return heads, out


@dataclass(frozen=True)
class Portable:
    """Portable masks of a model: any grid, any order whose blocks are as compact as those they were made from.

    Attributes:
        masks: one per (bucket of progress, layer): scores by displacement, which the policy's density cuts, or sets of
            displacements, which come with their density.
        edges: upper edges of the buckets but the last, ascending progress; empty for one bucket.
    """

    masks: Mapping[tuple[int, int], PortableVolume | DisplacementMask]
    edges: tuple[float, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(mask.bytes for mask in self.masks.values())

    def select(self, call: RuleCall) -> Tensor:
        """Kept block pairs of a call; q and k are not looked at.

        Scores are cut as those of a draft by `head`: one budget per head, with the policy's floor for every row.

        Raises:
            ValueError: if the host does not say where the call stands, or the layer was not calibrated.
        """
        if call.position is None:
            raise ValueError("portable masks need to know the layer and the progress, which this host does not tell")
        progress = call.position.progress
        at = sum(progress >= edge for edge in self.edges), call.position.layer
        if at not in self.masks:
            raise ValueError(f"layer {at[1]} has no portable mask for progress {progress:.2f}: calibrate the model")
        mask = self.masks[at]
        part = heads_of(call, mask.heads)
        # Made once for a layer, a bucket, a layout and a policy: the state holds what it was made from.
        known = call.state.get("portable")
        made_from = (mask, call.tables, call.policy, part)
        if known is None or any(a is not b for a, b in zip(known[0][:2], made_from)) or known[0][2:] != made_from[2:]:
            known = made_from, _cut(mask.of_heads(part), call.tables, call.policy)
            call.state["portable"] = known
        keep: Tensor = known[1]
        return keep.expand(call.q.shape[0], -1, -1, -1)


def _cut(mask: PortableVolume | DisplacementMask, tables: LayoutTables, policy: Policy) -> Tensor:
    """(1, H, q blocks, k blocks) bool, extra blocks included."""
    if isinstance(mask, DisplacementMask):
        return whole_map(mask.mask(tables).unsqueeze(0), tables)
    return select_blocks(mask.scores(tables), tables, replace(policy, method="head"))
