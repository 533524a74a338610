"""Small problems for the interpreted kernels, the reference's answer to them, and how far off an answer may be."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout, LayoutTables, build_tables
from draftattention.draftattn_core.method.tail.expand import make_tail
from draftattention.kernels.configs import AttendConfig
from draftattention.kernels.types import Geometry, Selected, Tail

# Relative L2 error against float64 on the same rounded inputs (notes: 2.8e-4 for float16, 2.3e-3 for bfloat16).
# The interpreter truncates where a GPU rounds to bfloat16, which costs 2.4 times the error.
LIMITS = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 1e-2}

TINY = AttendConfig(block_m=16, block_n=16, block_g=16, warps=4, stages=2, tail_stages=1)


@dataclass(frozen=True)
class Problem:
    """A request and what kernels take for it."""

    request: AttendRequest
    geometry: Geometry
    tail: Tail | None


def random_keep(tables: LayoutTables, batch: int, heads: int, density: float, generator: torch.Generator) -> Tensor:
    """A selection as the core makes them: random video pairs, extra blocks always."""
    shape = (batch, heads, tables.q.total, tables.k.total)
    keep = torch.rand(shape, generator=generator) < density
    keep[:, :, tables.q.video :] = True
    keep[:, :, :, tables.k.video :] = True
    return keep


def make_problem(
    *,
    grid: tuple[int, int, int] = (3, 5, 7),
    before: int = 0,
    after: int = 0,
    q_block: int = 32,
    k_block: int = 16,
    batch: int = 1,
    heads: int = 2,
    dim: int = 64,
    dtype: torch.dtype = torch.float32,
    density: float = 0.4,
    tail: str | tuple[str, ...] | None = None,
    bias: str | None = None,
    interleaved: bool = False,
    scattered: bool = False,
    q_scale: float = 1.0,
    seed: int = 0,
) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    order = "hilbert" if q_block not in (128, 64, 32, 16) else "tile"
    layout = Layout(TokenGrid(*grid), before, after, q_block, k_block, order=order)
    tables = build_tables(layout)
    length = layout.tokens
    if interleaved:
        qkv = torch.randn(batch, length, 3, heads, dim, generator=generator).to(dtype)
        q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
    else:
        q, k, v = (torch.randn(batch, heads, length, dim, generator=generator).to(dtype) for _ in range(3))
    # Neighbouring keys resemble each other, as in a video: block means and the linear term then carry something.
    drift = torch.randn(heads, 1, dim, generator=generator) * torch.linspace(-1, 1, length)[:, None]
    k += drift.to(dtype)
    v += drift.roll(1, -1).to(dtype)
    if q_scale != 1.0:
        q = q * q_scale
    if scattered:
        q, k, v = scatter(q, k, v)
    key_bias = None
    if bias is not None and layout.extra:
        rows = batch if bias == "per_batch" else 1
        key_bias = torch.randn(rows, layout.extra, generator=generator)
        key_bias[:, layout.extra // 2 :: 3] = -torch.inf
    keep = random_keep(tables, batch, heads, density, generator)
    expansion = None if tail is None else make_tail(k, v, tables, tail)
    request = AttendRequest(q, k, v, tables, keep, expansion, key_bias, dim**-0.5)
    return Problem(request, tables.geometry, None if expansion is None else expansion.to(dtype))


def scatter(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same values with no stride of one tensor equal to that of another or to 1, and NaN in between: one stride
    taken for another is seen."""
    return _laid_out(q, (0, 1, 2, 3), 3), _laid_out(k, (2, 1, 0, 3), 2), _laid_out(v, (1, 3, 0, 2), 5)


def _laid_out(x: Tensor, order: tuple[int, ...], step: int) -> Tensor:
    """x in memory whose axes, the slowest first, are those named in `order`, `step` elements for each of its own."""
    spread = x.new_full((*(x.shape[axis] for axis in order), step), torch.nan)
    spread[..., 0] = x.permute(order)
    return spread[..., 0].permute([order.index(axis) for axis in range(4)])


def lists_of(keep: Tensor, others: bool = False) -> Selected:
    """Ascending lists, counts and packed words of a keep map; slots past a count hold a block that must never be read,
    or all `others`, descending, as tails of the pointer kernel read them.

    Bits past the last column are set on purpose: there are no such blocks, whatever the bits say.
    """
    counts = keep.sum(-1, dtype=torch.int32)
    columns = torch.arange(keep.shape[-1]).expand(keep.shape)
    past = 2 * keep.shape[-1] - columns
    lists = torch.where(keep, columns, past if others else 1 << 30).sort(-1).values
    lists = torch.where(columns < counts[..., None], lists, (2 * keep.shape[-1] - lists) if others else lists)
    return Selected(lists.to(torch.int32), counts, words_of(keep))


def words_of(keep: Tensor, filler: bool = True) -> Tensor:
    """A keep map as int32 words, lowest bit first; `filler` in the bits past the last column (`select` clears them)."""
    bits = torch.nn.functional.pad(keep, (0, -keep.shape[-1] % 32), value=filler).unflatten(-1, (-1, 32))
    return (bits.long() << torch.arange(32)).sum(-1).to(torch.int32)


def poisoned_output(request: AttendRequest) -> Tensor:
    batch, heads, length, dim = request.q.shape
    return torch.full((batch, length, heads, 2 * dim), torch.nan, dtype=request.q.dtype)[..., ::2].transpose(1, 2)


def relative_error(answer: Tensor, truth: Tensor) -> float:
    return float((answer.double() - truth).norm() / truth.norm())


def truth_of(request: AttendRequest) -> Tensor:
    """The reference in float64; rows with no key at all are 0, as the kernels define them."""
    wide = replace(request, q=request.q.double(), k=request.k.double(), v=request.v.double())
    return attend_reference(wide)
