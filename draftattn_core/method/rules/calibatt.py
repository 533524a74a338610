"""CalibAtt (arXiv 2603.05503) and its portable form as rules: no draft, no routing, masks come from a calibration.

As published: raster order, no tail, blocks of one size, one mask per (step, layer, head); repetition heads are computed
from anchor rows instead of a mask. The masks hold on the grid and for the number of steps they were made for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from torch import Tensor

from ...geometry.layout import Layout, LayoutTables
from ...phrase import Phrase, Text
from ..calibatt.displacement import DisplacementMask
from ..calibatt.intervals import Intervals
from ..calibatt.portable import PortableVolume
from ..calibatt.repetition import ANCHORS, anchor_work, attend_anchors
from ..policy import Policy
from ..selection import select_blocks
from .call import CallPosition, RuleCall, whole_map
from .rule import Attended, Default, Rule

# What a call finds in its state: the run's `CalibratedMasks`; a part of a call, its share of the mask of the whole.
MASKS = "calibrated masks"
_PART = "part of the mask"

At = tuple[int, int]
"""Step and layer, from 0."""


def heads_of(call: RuleCall, known: int) -> slice:
    """Which heads of its layer a call holds, of those that something is known of.

    Raises:
        ValueError: if it is not known of as many heads as the layer has.
    """
    held, position = call.q.shape[1], call.position
    first, heads = (0, held) if position is None else (position.first_head, position.all_heads or held)
    if heads != known:
        raise ValueError(f"these masks are for {known} heads, the layer has {heads}: calibrate this model")
    return slice(first, first + held)


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
        """Kept block pairs of a call, by the lists; those of repetition heads are void, see `attend`."""
        if _PART in call.state:
            part_of_whole: Tensor = call.state[_PART]
            return part_of_whole
        self.check(call.tables)
        lists = self.lists[self.at(call)]
        part = heads_of(call, lists.bounds.shape[0])
        keep = Intervals(lists.bounds[part], lists.columns).mask()
        return whole_map(keep.expand(call.q.shape[0], -1, -1, -1), call.tables)

    def repeats(self, call: RuleCall) -> tuple[bool, ...]:
        """Which heads of a call are repetition heads."""
        flags = self.repetition.get(self.at(call), ())
        return flags[heads_of(call, len(flags))] if flags else (False,) * call.q.shape[1]

    def attend(self, call: RuleCall, default: Default) -> Attended | None:
        """Repetition heads from their anchor rows, the others by their lists; None where no head repeats.

        The work of a repetition head counts as whole rows of blocks, as many as its anchor rows and extra tokens fill.
        """
        if _PART in call.state or not any(self.repeats(call)):
            return None
        keep, outs, start = self.select(call).clone(), [], 0
        rows = round(anchor_work(call.tables, self.anchors) * keep.shape[2])
        for repeats, run in groupby(self.repeats(call)):
            part = slice(start, start + len(tuple(run)))
            some, start = call.of_heads(part), part.stop
            if repeats:
                q, k, v, bias = some.q, some.k, some.v, some.key_bias
                outs.append(attend_anchors(q, k, v, some.tables, some.scale, key_bias=bias, anchors=self.anchors))
                keep[:, part] = (torch.arange(keep.shape[2], device=keep.device) < rows)[:, None]
            else:
                outs.append(default(replace(some, state={_PART: keep[:, part]})).out)
        return Attended(torch.cat(outs, dim=1), keep)

    def rule(self) -> Rule:
        """The rule that follows these masks; use it with the policy's tail `none`, as published."""
        return Rule(self.select, attend=self.attend)


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

    def at(self, progress: float, layer: int) -> tuple[int, int]:
        """Key of the mask for a place in a run."""
        return sum(progress >= edge for edge in self.edges), layer

    def select(self, call: RuleCall) -> Tensor:
        """Kept block pairs of a call; q and k are not looked at.

        Scores are cut as those of a draft by `head`: one budget per head, with the policy's floor for every row.

        Raises:
            ValueError: if the host does not say where the call stands, or the layer was not calibrated.
        """
        if call.position is None:
            raise ValueError("portable masks need to know the layer and the progress, which this host does not tell")
        at = self.at(call.position.progress, call.position.layer)
        progress = call.position.progress
        if at not in self.masks:
            raise ValueError(f"layer {at[1]} has no portable mask for progress {progress:.2f}: calibrate the model")
        mask = self.masks[at]
        part = heads_of(call, mask.heads)
        # Made once for a layer, a bucket, a layout and a policy: the state holds what it was made from.
        known = call.state.get("portable")
        policy = replace(call.policy, method="head", density=call.heads.densities)
        made_from = (mask, call.tables, policy, part)
        if known is None or any(a is not b for a, b in zip(known[0][:2], made_from)) or known[0][2:] != made_from[2:]:
            known = made_from, _cut(mask.of_heads(part), call.tables, policy)
            call.state["portable"] = known
        keep: Tensor = known[1]
        return keep.expand(call.q.shape[0], -1, -1, -1)

    def rule(self) -> Rule:
        """The rule that follows these masks."""
        return Rule(self.select)


def _cut(mask: PortableVolume | DisplacementMask, tables: LayoutTables, policy: Policy) -> Tensor:
    """(1, H, q blocks, k blocks) bool, extra blocks included."""
    if isinstance(mask, DisplacementMask):
        return whole_map(mask.mask(tables).unsqueeze(0), tables)
    return select_blocks(mask.scores(tables), tables, policy)


@dataclass(frozen=True)
class CalibratedMasks:
    """What a calibration gives a run: its masks where they fit, their portable form on any other grid.

    Attributes:
        exact: masks of the grid and the noise levels of the calibration.
        progress: of every step of `exact`, ascending. In a run of other noise levels a call takes the masks of the
            nearest one (ours; published masks are for one number of steps).
        portable: for every other layout.
        densities: per key of `portable` the density of each head's exact masks, which the portable ones get too.
    """

    exact: Calibrated
    progress: tuple[float, ...]
    portable: Portable
    densities: Mapping[tuple[int, int], tuple[float, ...]]
    _on_device: dict[torch.device, Calibrated] = field(default_factory=dict, repr=False)

    def remark(self, layout: Layout) -> Text | None:
        """What to tell the user of a run with that layout; None where the masks are its own."""
        if layout.grid == self.exact.layout.grid:
            return None
        return Phrase(
            "masks_portable",
            "the masks were calibrated on the grid {masks} and the run has {run}: their portable form is used, by "
            "displacement; calibrate on this grid for the published one",
            masks=str(self.exact.layout.grid),
            run=str(layout.grid),
        )

    def select(self, call: RuleCall) -> Tensor:
        """Kept block pairs of a call, by lists or by displacements."""
        if self.remark(call.tables.layout) is None:
            return self._exact(call).select(self._placed(call))
        if call.position is None:
            return self.portable.select(call)
        known = self.densities.get(self.portable.at(call.position.progress, call.position.layer), ())
        part = heads_of(call, len(known)) if known else slice(0)
        heads = replace(call.heads, densities=known[part]) if known else call.heads
        return self.portable.select(replace(call, heads=heads))

    def attend(self, call: RuleCall, default: Default) -> Attended | None:
        """Repetition heads where the masks are the call's own; otherwise all heads by their portable masks."""
        if self.remark(call.tables.layout) is not None:
            return None
        return self._exact(call).attend(self._placed(call), default)

    def _exact(self, call: RuleCall) -> Calibrated:
        """The lists on the call's device, loaded with the first call."""
        device = call.q.device
        if device not in self._on_device:
            self._on_device[device] = self.exact.to(device)
        return self._on_device[device]

    def _placed(self, call: RuleCall) -> RuleCall:
        """The call at the calibrated step nearest in noise, of those that its layer has."""
        position = call.position
        if position is None:
            return call
        steps = [step for step, layer in self.exact.lists if layer == position.layer]
        nearest = min(steps, key=lambda step: abs(self.progress[step] - position.progress), default=position.step)
        return call if nearest == position.step else replace(call, position=_At(position, nearest))


@dataclass(frozen=True)
class _At:
    """A position at another step."""

    position: CallPosition
    step: int

    @property
    def progress(self) -> float:
        return self.position.progress

    @property
    def layer(self) -> int:
        return self.position.layer

    @property
    def first_head(self) -> int:
        return self.position.first_head

    @property
    def all_heads(self) -> int:
        return self.position.all_heads


def _masks_of(call: RuleCall) -> CalibratedMasks:
    found = call.state.get(MASKS)
    if not isinstance(found, CalibratedMasks):
        raise ValueError("the method calibatt needs calibrated masks in the call's state: run it with a profile")
    return found


def _select(call: RuleCall) -> Tensor:
    if _PART in call.state:
        part_of_whole: Tensor = call.state[_PART]
        return part_of_whole
    return _masks_of(call).select(call)


def _attend(call: RuleCall, default: Default) -> Attended | None:
    return None if _PART in call.state else _masks_of(call).attend(call, default)


RULE = Rule(_select, attend=_attend)
