"""Keep one sparse call's draft map and kept blocks for a picture of them. It listens to `CallDone`."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..attention import Attention
from ..geometry.blocks import block_means
from ..geometry.layout import Layout, build_tables
from .events import CallDone
from .report import Position


@dataclass(frozen=True, eq=False)
class CapturedCall:
    """What a call chose, for the first sample of its batch; tensors on the CPU, video blocks only.

    Attributes:
        position: where in the run.
        layout: geometry of the call.
        draft: (H, q blocks, k blocks) float16, the draft map: softmax over the key blocks of a row.
        keep: (H, q blocks, k blocks) bool, pairs computed exactly.
        backend: what computed it.
    """

    position: Position
    layout: Layout
    draft: Tensor
    keep: Tensor
    backend: str

    @property
    def heads(self) -> int:
        return int(self.keep.shape[0])

    def density(self, head: int) -> float:
        """Share of the head's video block pairs that are kept."""
        return float(self.keep[head].float().mean())

    def kept_mass(self, head: int) -> float:
        """Share of the draft map's mass that the kept pairs hold, mean over rows."""
        return float((self.draft[head].float() * self.keep[head]).sum(-1).mean())

    def query_block(self, frame: float, row: float, column: float) -> int:
        """Query block of the token at a place of the video; each coordinate 0..1 along its axis."""
        grid = self.layout.grid
        t, h, w = (
            min(size - 1, max(0, int(share * size)))
            for share, size in ((frame, grid.t), (row, grid.h), (column, grid.w))
        )
        return int(video_blocks(self.layout)[0][(t * grid.h + h) * grid.w + w])

    def per_token(self, head: int, query_block: int) -> tuple[Tensor, Tensor, Tensor]:
        """What one query block sees, as volumes (T, H, W) over the video.

        Returns:
            draft: the draft map's value of each token's key block.
            keep: whether that block is computed exactly.
            query: whether the token belongs to the query block itself.
        """
        q_of_token, k_of_token = video_blocks(self.layout)
        grid = self.layout.grid.as_tuple()
        draft = self.draft[head, query_block].float()[k_of_token].view(grid)
        return draft, self.keep[head, query_block][k_of_token].view(grid), (q_of_token == query_block).view(grid)


def video_blocks(layout: Layout) -> tuple[Tensor, Tensor]:
    """Query and key block of every video token in the host's order, each (T * H * W,) int64."""
    tables = build_tables(layout)
    place = tables.inverse[layout.extra_before : layout.extra_before + layout.grid.tokens]
    return tables.q.of_token[place], tables.k.of_token[place]


@dataclass(eq=False)
class CallCapture:
    """Keeps the first sparse call of the wanted step and layer; subscribe it to `CallDone`.

    Attributes:
        step: index of the noise level in the run, negative from the end: -1 keeps overwriting, so the last one stays.
        layer: index of the attention layer, negative from the end.
        taken: what was kept; None before the call came. A dense call is never seen here.
        seen: (steps, layers) seen so far, to tell a user what there would have been.
    """

    step: int = 0
    layer: int = 0
    taken: CapturedCall | None = None
    seen: tuple[set[int], set[int]] = field(default_factory=lambda: (set(), set()))
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def clear(self) -> None:
        """Forget the last run."""
        with self._lock:
            self.taken = None
            self.seen = (set(), set())

    def __call__(self, event: CallDone) -> None:
        position = event.position
        with self._lock:
            self.seen[0].add(position.step)
            self.seen[1].add(position.layer)
            layer = self.layer + position.layers if self.layer < 0 else self.layer
            if position.layer != layer or not self._wants(position):
                return
            self.taken = capture(event.result, position)

    def _wants(self, position: Position) -> bool:
        newer = self.taken is None or position.step > self.taken.position.step
        return newer and (position.step == self.step or self.step < 0)

    def missing(self) -> str:
        """Why there is nothing to draw, and what to choose instead."""
        steps, layers = (sorted(found) for found in self.seen)
        if not steps:
            return (
                "No sparse call was captured: nothing of this run was sparse, or it has not run. "
                "The DraftAttention Report node shows why."
            )
        wanted = "The last step" if self.step < 0 else f"Step {self.step + 1}"
        return (
            f"{wanted}, layer {self.layer} ran dense or does not exist. "
            f"Sparse calls were seen in steps {_ranges([step + 1 for step in steps])} and layers {_ranges(layers)}."
        )


def capture(result: Attention, position: Position) -> CapturedCall:
    """Copy a call's draft map and selection to the CPU, head by head: (R, C) is the largest temporary."""
    request = result.request
    tables = request.tables
    rows, columns = tables.q.video, tables.k.video
    q, k = request.q[:1], request.k[:1]
    log_count = tables.k.counts[:columns].log()
    heads = q.shape[1]
    draft = torch.empty(heads, rows, columns, dtype=torch.float16)
    for head in range(heads):
        q_mean = block_means(q[:, head : head + 1], tables.perm, tables.q)[0, 0].float()
        k_mean = block_means(k[:, head : head + 1], tables.perm, tables.k)[0, 0].float()
        logits = request.scale * q_mean @ k_mean.t() + log_count
        draft[head] = logits.softmax(-1).to("cpu", torch.float16)
    keep = request.keep[0, :, :rows, :columns].cpu()
    return CapturedCall(position, tables.layout, draft, keep, result.backend)


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    parts: list[str] = []
    start = previous = numbers[0]
    for number in [*numbers[1:], None]:
        if number is not None and number == previous + 1:
            previous = number
            continue
        parts.append(str(start) if start == previous else f"{start}-{previous}")
        if number is not None:
            start = previous = number
    return ", ".join(parts)
