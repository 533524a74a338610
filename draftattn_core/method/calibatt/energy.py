"""Block energies: how much attention a query block pays to each key block, without ever holding the whole map.

The softmax mass of row i in block j is a block sum of exp(logit - peak_i), over the sum of all blocks. A few query
blocks of a few heads are taken at a time, so few that their logits stay in a core's cache; each is made and
exponentiated once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...geometry.blocks import statistics_dtype
from ...geometry.layout import BlockTable, LayoutTables

# Logits of one chunk: what a core's own cache holds, and what keeps another device busy.
_CPU_CHUNK_BYTES = 2 << 20
_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class RowMasses:
    """Softmax masses of some query blocks of some heads.

    Attributes:
        heads, blocks: which heads and which video query blocks, as slices of the whole call.
        mass: (B, h, r, q block, k blocks) mass of each row in each key block, extra blocks included; rows past the end
            of a short query block hold zeros.
        lse: (B, h, r, q block) log-sum-exp of each row's logits.
    """

    heads: slice
    blocks: slice
    mass: Tensor
    lse: Tensor


@dataclass(frozen=True)
class Energy:
    """Attention mass between blocks (arXiv 2603.05503, equation 5).

    Attributes:
        blocks: (B, H, video q blocks, k blocks) float32 (float64 for float64 inputs), mean over the rows of a query
            block of their softmax mass in a key block. Rows sum to 1 if `lse` is their own.
        lse: (B, H, video q blocks, q block) log-sum-exp of the rows it was made with; 0 past the end of a short block.
    """

    blocks: Tensor
    lse: Tensor


def block_slots(x: Tensor, perm: Tensor, table: BlockTable, blocks: int) -> Tensor:
    """The first `blocks` blocks of x (B, h, L, D), every block full: (B, h, blocks, size, D) in `statistics_dtype`.

    Slots past the end of a short block repeat its last token; mask or weigh them.
    """
    offset = torch.arange(table.size, device=perm.device)
    starts, ends = table.starts[:blocks, None], table.starts[1 : blocks + 1, None]
    position = torch.minimum(starts + offset, ends - 1)
    slots = x.index_select(2, perm[position.flatten()]).to(statistics_dtype(x))
    return slots.view(*x.shape[:2], blocks, table.size, x.shape[3])


def empty_slots(table: BlockTable, blocks: int) -> Tensor:
    """(blocks, size) bool: slots past the end of a short block among the first `blocks` ones."""
    return torch.arange(table.size, device=table.counts.device) >= table.counts[:blocks, None]


def key_slot_bias(tables: LayoutTables, key_bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """(B or 1, k blocks, size) added to the logit of each key slot: -inf without a token, else its key bias."""
    table, extra = tables.k, tables.layout.extra
    empty = empty_slots(table, table.total)
    bias = torch.zeros(1, table.total, table.size, dtype=dtype, device=empty.device).masked_fill_(empty, -torch.inf)
    if key_bias is None or extra == 0:
        return bias
    bias = bias.repeat(key_bias.shape[0], 1, 1)
    start = table.video * table.size
    bias.flatten(1)[:, start : start + extra] = key_bias.to(dtype)
    return bias


def chunk_bytes_on(device: torch.device, given: int | None) -> int:
    """How large the logits of one chunk may be: as given, or what suits the device."""
    if given is not None:
        return given
    return _CPU_CHUNK_BYTES if device.type == "cpu" else _CHUNK_BYTES


def row_masses(
    q: Tensor,
    k: Tensor,
    tables: LayoutTables,
    scale: float,
    *,
    key_bias: Tensor | None = None,
    lse: Tensor | None = None,
    chunk_bytes: int | None = None,
) -> Iterator[RowMasses]:
    """Softmax masses of all video rows, a few query blocks at a time.

    Args:
        q, k: (B, H, L, D) with RoPE applied, in the host's token order.
        key_bias: (B or 1, extra tokens) added to the logits of the extra tokens, or None.
        lse: `Energy.lse` of an earlier call, to be used in place of the rows' own; None to compute it.
        chunk_bytes: how large the logits of one chunk may be, None for what suits the device; one query block of one
            head is the least.
    """
    chunk_bytes = chunk_bytes_on(q.device, chunk_bytes)
    batch, heads = q.shape[:2]
    bias = key_slot_bias(tables, key_bias, statistics_dtype(q))[:, None, None, None]
    # Blocks before the last video one are full, and nothing weighs on their keys.
    first = tables.k.video - 1
    unused = empty_slots(tables.q, tables.q.video).unsqueeze(-1)
    row_bytes = batch * tables.q.size * tables.k.total * tables.k.size * bias.element_size()
    rows = max(1, chunk_bytes // row_bytes)
    head_step = max(1, rows // tables.q.video)
    row_step = min(rows, tables.q.video)
    for h in range(0, heads, head_step):
        part = slice(h, min(h + head_step, heads))
        queries = block_slots(q[:, part], tables.perm, tables.q, tables.q.video)
        keys = block_slots(k[:, part], tables.perm, tables.k, tables.k.total).flatten(2, 3)
        keys = keys.transpose(-1, -2).contiguous()
        for r in range(0, tables.q.video, row_step):
            blocks = slice(r, min(r + row_step, tables.q.video))
            some = queries[:, :, blocks]
            logits = torch.matmul(some.flatten(2, 3) * scale, keys)
            logits = logits.view(*some.shape[:4], tables.k.total, tables.k.size)
            logits[..., first:, :] += bias[..., first:, :]
            peak = logits.amax((-2, -1)) if lse is None else lse[:, part, blocks]
            mass = logits.sub_(peak[..., None, None]).exp_().sum(-1)
            own = peak
            if lse is None:
                total = mass.sum(-1)
                mass /= total.unsqueeze(-1)
                own = peak + total.log()
            mass.masked_fill_(unused[blocks], 0.0)
            yield RowMasses(part, blocks, mass, own.masked_fill(unused[blocks, :, 0], 0.0))


def block_energy(
    q: Tensor,
    k: Tensor,
    tables: LayoutTables,
    scale: float,
    *,
    key_bias: Tensor | None = None,
    lse: Tensor | None = None,
    chunk_bytes: int | None = None,
) -> Energy:
    """Mean mass of every video query block in every key block; arguments as for `row_masses`.

    Costs the product of q and k of a dense call, and no more memory than `chunk_bytes` beside its result.
    """
    dtype = statistics_dtype(q)
    energy = torch.empty(*q.shape[:2], tables.q.video, tables.k.total, dtype=dtype, device=q.device)
    found = torch.empty(*q.shape[:2], tables.q.video, tables.q.size, dtype=dtype, device=q.device)
    counts = tables.q.counts[: tables.q.video, None].to(dtype)
    for part in row_masses(q, k, tables, scale, key_bias=key_bias, lse=lse, chunk_bytes=chunk_bytes):
        energy[:, part.heads, part.blocks] = part.mass.sum(3) / counts[part.blocks]
        found[:, part.heads, part.blocks] = part.lse
    return Energy(energy, found)


def kept_mass(
    q: Tensor,
    k: Tensor,
    tables: LayoutTables,
    keep: Tensor,
    scale: float,
    *,
    key_bias: Tensor | None = None,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Share of each token's softmax mass that lies in the kept blocks: (B, H, L) in the host's order.

    `keep` is (B, H, q blocks, k blocks) bool; extra tokens keep everything and get 1.
    """
    share = torch.ones(*q.shape[:3], dtype=statistics_dtype(q), device=q.device)
    video = tables.layout.grid.tokens
    ordered = share.new_ones(*q.shape[:2], tables.q.video, tables.q.size)
    for part in row_masses(q, k, tables, scale, key_bias=key_bias, chunk_bytes=chunk_bytes):
        kept = keep[:, part.heads, part.blocks].unsqueeze(3)
        ordered[:, part.heads, part.blocks] = (part.mass * kept).sum(-1)
    # Only the last video block can be short, so its unused slots come last.
    share[:, :, tables.perm[:video]] = ordered.flatten(2)[:, :, :video]
    return share
