"""Layout: which tokens of a call are video, which are extra, and where the blocks of the order begin and end.

Block order, the order every backend works in, is: the video tokens along the order, then the extra tokens (those
before the video, then those after it). Query blocks and key blocks are two cuts of that one sequence; extra tokens
start blocks of their own, so a block is either all video or all extra.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ...kernels.types import Geometry
from .device_cache import DeviceCache
from .grid import TokenGrid
from .order import ORDERS, Tile, make_order

DEFAULT_TILES: dict[int, Tile] = {128: (4, 4, 8), 64: (4, 4, 4), 32: (2, 4, 4), 16: (2, 2, 4), 8: (2, 2, 2)}
PAPER_TILE: Tile = (1, 8, 16)

# Log counts and budgets of 60 layers with gains of their own, at 720p.
_CONSTANT_BYTES = 16 << 20


@dataclass(frozen=True)
class Layout:
    """Geometry of one self-attention call.

    Attributes:
        grid: token grid of the video.
        extra_before, extra_after: extra tokens (text, reference, audio, motion) around the video in the host's order.
        q_block, k_block: tokens per query and per key block.
        tile: (p_t, p_h, p_w) whose product is the larger of the two blocks; None takes the default of that size, made
            flatter where the video has too few frames for it.
        order: one of `ORDERS`.

    Raises:
        ValueError: if a size is not positive, the blocks do not nest, or the tile does not hold one block.
    """

    grid: TokenGrid
    extra_before: int = 0
    extra_after: int = 0
    q_block: int = 128
    k_block: int = 64
    tile: Tile | None = None
    order: str = "tile"

    def __post_init__(self) -> None:
        if min(self.extra_before, self.extra_after) < 0:
            raise ValueError("the number of extra tokens cannot be negative")
        large, small = max(self.q_block, self.k_block), min(self.q_block, self.k_block)
        if small < 1 or large % small:
            raise ValueError(f"query and key blocks must be multiples of each other, got {self.q_block}/{self.k_block}")
        if self.order not in ORDERS:
            raise ValueError(f"unknown order {self.order!r}: choose one of {', '.join(ORDERS)}")
        if self.order == "tile":
            p_t, p_h, p_w = self.tile_shape
            if min(p_t, p_h, p_w) < 1 or p_t * p_h * p_w != large:
                raise ValueError(
                    f"tile {p_t}x{p_h}x{p_w} holds {p_t * p_h * p_w} tokens but the larger block has {large}: "
                    "choose a tile whose product is the block size"
                )

    @property
    def tile_shape(self) -> Tile:
        """The tile in use. A default tile deeper than twice the video gives up frames for rows and columns."""
        if self.tile is not None:
            return self.tile
        large = max(self.q_block, self.k_block)
        if large in DEFAULT_TILES:
            p_t, p_h, p_w = DEFAULT_TILES[large]
            while p_t >= 2 * self.grid.t:
                p_t, p_h, p_w = (p_t // 2, 2 * p_h, p_w) if p_h < p_w else (p_t // 2, p_h, 2 * p_w)
            return (p_t, p_h, p_w)
        if self.order != "tile":
            return (1, 1, large)
        raise ValueError(f"there is no default tile for blocks of {large} tokens: pass tile=(p_t, p_h, p_w)")

    @property
    def extra(self) -> int:
        return self.extra_before + self.extra_after

    @property
    def tokens(self) -> int:
        return self.grid.tokens + self.extra

    def __str__(self) -> str:
        extra = f" + {self.extra_before}|{self.extra_after} extra" if self.extra else ""
        name = "x".join(map(str, self.tile_shape)) if self.order == "tile" else self.order
        return f"{self.grid}{extra}, {name}, blocks {self.q_block}/{self.k_block}"


@dataclass(frozen=True)
class BlockTable:
    """Where the blocks of one cut begin in block order.

    Attributes:
        size: tokens per full block.
        video: number of video blocks; they come first. Only the last of them may hold fewer than `size` tokens.
        extra: number of extra-token blocks after them (the last may be short).
        starts: (video + extra + 1,) int64 on the device; block i holds positions starts[i] to starts[i + 1].
        counts: (video + extra,) float32 on the device.
        of_token: (L,) int64 on the device, block of each position in block order.
        bounds: `starts` as Python integers, for loops on the host.
    """

    size: int
    video: int
    extra: int
    starts: Tensor
    counts: Tensor
    of_token: Tensor
    bounds: tuple[int, ...]

    @property
    def total(self) -> int:
        return self.video + self.extra


@dataclass(frozen=True)
class LayoutTables:
    """Index tables of a layout on one device; built once, read by every call.

    Attributes:
        layout: what they were built for.
        perm: (L,) int64, position in block order -> host token.
        inverse: (L,) int64, host token -> position in block order.
        q, k: the two cuts.
        own: (q.video, k.video) bool, key blocks that share a token with the query block.
        first_frame, last_frame: (k.video,) bool, key blocks that hold a token of that frame.
        constants: what calls derive from these tables and their policy, on the same device; freed with the tables.
    """

    layout: Layout
    perm: Tensor
    inverse: Tensor
    q: BlockTable
    k: BlockTable
    own: Tensor
    first_frame: Tensor
    last_frame: Tensor
    constants: DeviceCache = field(default_factory=lambda: DeviceCache(_CONSTANT_BYTES), init=False, compare=False)

    @cached_property
    def geometry(self) -> Geometry:
        """The same in numbers, as kernels take it."""
        layout = self.layout
        # Kernels walk the order without strides.
        perm = self.perm.contiguous()
        return Geometry(layout.tokens, layout.grid.tokens, layout.q_block, layout.k_block, perm)

    def constant(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of `key`, from `make` where no call has made it yet; to be read only."""
        return self.constants.get(key, self.perm.device, make)


def _cut(video_tokens: int, extra_tokens: int, size: int, device: torch.device) -> BlockTable:
    bounds = list(range(0, video_tokens, size))
    video = len(bounds)
    bounds += [video_tokens + i for i in range(0, extra_tokens, size)]
    extra = len(bounds) - video
    bounds.append(video_tokens + extra_tokens)
    starts = torch.tensor(bounds)
    counts = starts[1:] - starts[:-1]
    return BlockTable(
        size=size,
        video=video,
        extra=extra,
        starts=starts.to(device),
        counts=counts.float().to(device),
        of_token=torch.repeat_interleave(torch.arange(video + extra), counts).to(device),
        bounds=tuple(bounds),
    )


def build_tables(layout: Layout, device: torch.device | str = "cpu") -> LayoutTables:
    """Index tables of `layout` on `device`, not cached."""
    device = torch.device(device)
    grid, video_tokens = layout.grid, layout.grid.tokens
    order = make_order(layout.order, grid, layout.tile_shape)
    before = torch.arange(layout.extra_before)
    after = torch.arange(layout.extra_after) + layout.extra_before + video_tokens
    perm = torch.cat([order + layout.extra_before, before, after])
    q = _cut(video_tokens, layout.extra, layout.q_block, device)
    k = _cut(video_tokens, layout.extra, layout.k_block, device)

    own = torch.zeros(q.video, k.video, dtype=torch.bool)
    own[q.of_token[:video_tokens].cpu(), k.of_token[:video_tokens].cpu()] = True
    frame = order // grid.frame_tokens
    k_of_token = k.of_token[:video_tokens].cpu()
    first = torch.zeros(k.video, dtype=torch.bool)
    first[k_of_token[frame == 0]] = True
    last = torch.zeros(k.video, dtype=torch.bool)
    last[k_of_token[frame == grid.t - 1]] = True
    return LayoutTables(
        layout=layout,
        perm=perm.to(device),
        inverse=torch.argsort(perm).to(device),
        q=q,
        k=k,
        own=own.to(device),
        first_frame=first.to(device),
        last_frame=last.to(device),
    )


@dataclass
class TableCache:
    """A bounded, thread-safe cache of `LayoutTables`; owned by whoever owns the model, cleared with it.

    Tables are complete once they are here, on every stream: they are copied from the host, which waits for it. So a
    CUDA graph cannot begin with them: make the call once before it is captured, and hold the tables as long as the
    graph. Who computes on another stream than the first caller's holds them, too, until that work is done.

    Attributes:
        limit: how many (layout, device) pairs are kept; the least recently used goes first.
    """

    limit: int = 8
    _entries: OrderedDict[tuple[Layout, torch.device], LayoutTables] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, layout: Layout, device: torch.device | str) -> LayoutTables:
        key = (layout, torch.device(device))
        with self._lock:
            tables = self._entries.get(key)
            if tables is None:
                # Tensors made in inference mode could not serve a later call that records gradients.
                with torch.inference_mode(False):
                    tables = build_tables(*key)
                self._entries[key] = tables
                while len(self._entries) > self.limit:
                    self._entries.popitem(last=False)
            else:
                self._entries.move_to_end(key)
            return tables

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)
