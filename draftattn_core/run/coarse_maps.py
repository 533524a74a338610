"""Draft maps of calls spread over a run, small enough to look through in a browser. They listen to `CallDone`."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..attention import Attention
from ..geometry.blocks import block_means
from ..geometry.layout import Layout
from .events import CallDone
from .report import Position

MAX_STEPS, MAX_LAYERS = 5, 5
MAX_ROWS = 64
MAX_BYTES = 3 << 20
# What a level of 1 stands for, beside the row's largest value at `TOP`: softmax rows span several decades.
LOWEST = 1e-4
TOP = 255


@dataclass(frozen=True, eq=False)
class CoarseMap:
    """What a call's heads attend to and what they computed, for the first sample of its batch; tensors on the CPU.

    Attributes:
        position: where in the run.
        layout: geometry of the call.
        rows: (r,) int64, the query blocks that are in it: evenly spread, where all would be too many.
        merged: key blocks that are one column, consecutive in block order; the last column may hold fewer.
        draft: (H, r, c) uint8, levels of the draft map, see `to_levels`.
        kept: (H, r, c) uint8, share of the column's key blocks that are computed exactly, in 1/255.
    """

    position: Position
    layout: Layout
    rows: Tensor
    merged: int
    draft: Tensor
    kept: Tensor


def to_levels(share: Tensor) -> Tensor:
    """Shares (..., c), each row's sum 1, as uint8: `TOP` for the row's largest, falling with the logarithm down to 1 at
    `LOWEST` of it, 0 below that. The row's sum gives the shares back, see `from_levels`."""
    relative = share / share.amax(-1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
    levels = TOP - (TOP - 1) * relative.clamp_min(LOWEST / 10).log10() / math.log10(LOWEST)
    return torch.where(relative < LOWEST, 0, levels.round()).to(torch.uint8)


def from_levels(levels: Tensor) -> Tensor:
    """Shares (..., c) float32 of `to_levels`, within 3 percent of each but for those that were too small.

    `web/draft_maps.js` does the same.
    """
    relative = torch.where(levels == 0, 0.0, LOWEST ** ((TOP - levels.float()) / (TOP - 1)))
    return relative / relative.sum(-1, keepdim=True)


def coarse_map(
    result: Attention, position: Position, max_rows: int = MAX_ROWS, max_bytes: int = MAX_BYTES
) -> CoarseMap:
    """Draft map and selection of a call, in at most `max_bytes` unless one column is more than that.

    Too many query blocks are thinned out evenly, to `max_rows`; then key blocks are merged, their shares added.
    """
    request = result.request
    tables = request.tables
    heads, blocks, columns = int(request.q.shape[1]), tables.q.video, tables.k.video
    stride = math.ceil(blocks / max_rows)
    rows = torch.arange(stride // 2, blocks, stride) if stride < blocks else torch.tensor([blocks // 2])
    merged = min(columns, math.ceil(columns / max(1, max_bytes // (2 * heads * len(rows)))))
    picked = rows.to(request.q.device)
    queries = block_means(request.q[:1], tables.perm, tables.q)[0, :, picked].float()
    keys = block_means(request.k[:1], tables.perm, tables.k)[0].float()
    log_count = tables.k.counts[:columns].log()
    draft = torch.empty(heads, len(rows), math.ceil(columns / merged), dtype=torch.uint8, device=picked.device)
    kept = torch.empty_like(draft)
    keep = request.keep[0, :, :blocks, :columns]
    sizes = _merge(torch.ones(columns, device=picked.device), merged)
    # Head by head: (r, k blocks) is the largest temporary.
    for head in range(heads):
        share = (request.scale * queries[head] @ keys[head].t() + log_count).softmax(-1)
        draft[head] = to_levels(_merge(share, merged))
        kept[head] = (TOP * _merge(keep[min(head, len(keep) - 1), picked].float(), merged) / sizes).round()
    return CoarseMap(position, tables.layout, rows, merged, draft.cpu(), kept.cpu())


def _merge(values: Tensor, count: int) -> Tensor:
    """Sums over `count` consecutive entries of the last axis; the last sum may have fewer."""
    padded = torch.nn.functional.pad(values, (0, -values.shape[-1] % count))
    return padded.reshape(*values.shape[:-1], -1, count).sum(-1)


@dataclass(eq=False)
class CoarseMaps:
    """Keeps maps of up to `MAX_STEPS` steps and `MAX_LAYERS` layers, evenly spread over what was sparse.

    Attributes:
        layer: one that is kept in any case, negative from the end.
        kept: by step and layer.
    """

    layer: int = 0
    kept: dict[tuple[int, int], CoarseMap] = field(default_factory=dict)
    _first: int | None = None
    _stride: int = 1
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def clear(self) -> None:
        """Forget the last run."""
        with self._lock:
            self.kept = {}
            self._first, self._stride = None, 1

    def __call__(self, event: CallDone) -> None:
        position = event.position
        place = (position.step, position.layer)
        with self._lock:
            if position.layer not in self._layers(position.layers) or place in self.kept or not self._wants(place[0]):
                return
            self.kept[place] = coarse_map(event.result, position)

    def _layers(self, count: int) -> set[int]:
        """Evenly spread layers; the wanted one takes the place of its neighbour."""
        if count <= MAX_LAYERS:
            return set(range(count))
        even = [round(index * (count - 1) / (MAX_LAYERS - 1)) for index in range(MAX_LAYERS)]
        wanted = self.layer + count if self.layer < 0 else self.layer
        if 0 <= wanted < count and wanted not in even:
            even[min(range(1, MAX_LAYERS - 1), key=lambda index: abs(even[index] - wanted))] = wanted
        return set(even)

    def _wants(self, step: int) -> bool:
        """Whether a step is among those that are kept: every second, every fourth, ... as the run gets longer."""
        if self._first is None:
            self._first = step
        steps = {kept for kept, _ in self.kept}
        while (step - self._first) % self._stride == 0:
            if step in steps or len(steps) < MAX_STEPS:
                return True
            self._stride *= 2
            steps = {kept for kept in steps if (kept - self._first) % self._stride == 0}
            self.kept = {place: taken for place, taken in self.kept.items() if place[0] in steps}
        return False
