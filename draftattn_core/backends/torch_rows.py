"""CPU: one query block at a time, gathered keys, one matrix product each way. Skipped blocks cost nothing.

The tail is computed before, for several query blocks at once, and enters each row's softmax as one more column.

Memory beside the inputs, per thread: float32 Q, K, V, tail and output of one head, gathered copies of K and V and one
row of scores; never an L x L map. Large gathered batches lose here (page faults and cache misses), a Python loop over
rows does not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...kernels.types import Tail
from ..geometry.blocks import statistics_dtype
from ..geometry.layout import BlockTable
from .request import AttendRequest, new_output

# Columns in front of the scores of kept tokens, the first of them the tail's; a cache line of float32, so that the
# others stay aligned.
_FRONT = 16
# Tail scores of the rows that are computed at once; they stay in a core's own cache.
_TAIL_BYTES = 1 << 19


@dataclass
class _Buffers:
    """Reused storage of one thread: all blocks of one head, the gathered columns of one row, scores and weights."""

    keys: Tensor
    values: Tensor
    kept_keys: Tensor
    kept_values: Tensor
    scores: Tensor
    weights: Tensor

    @classmethod
    def allocate(cls, request: AttendRequest) -> _Buffers:
        table, dim = request.tables.k, request.q.shape[-1]
        dtype = statistics_dtype(request.q)
        blocks = (table.total, table.size, dim)
        columns = table.total * table.size
        new = request.q.new_empty
        return cls(
            keys=request.q.new_zeros(blocks, dtype=dtype),
            values=request.q.new_zeros(blocks, dtype=dtype),
            kept_keys=new((columns, dim), dtype=dtype),
            kept_values=new((columns, dim), dtype=dtype),
            scores=new(request.tables.q.size * (_FRONT + columns), dtype=dtype),
            weights=new(request.tables.q.size * (_FRONT + columns), dtype=dtype),
        )


def _fill(blocks: Tensor, x: Tensor, perm: Tensor, table: BlockTable) -> None:
    """Tokens of one head x (L, D) into its blocks (g, size, D); slots past the end of a short block stay zero."""
    video = table.bounds[table.video]
    flat = blocks.view(-1, blocks.shape[-1])
    flat[:video] = x.index_select(0, perm[:video])
    extra = len(perm) - video
    if extra:
        start = table.video * table.size
        flat[start : start + extra] = x.index_select(0, perm[video:])


def _column_bias(request: AttendRequest, batch: int, dtype: torch.dtype) -> tuple[Tensor, int]:
    """Bias of every key slot (k blocks, size): -inf on empty slots, the key bias on extra tokens.

    Also the first block that needs it: blocks before it are full video blocks, whose bias is zero.
    """
    table, layout = request.tables.k, request.tables.layout
    counts = table.counts[:, None]
    slots = torch.arange(table.size, device=request.q.device)
    bias = torch.zeros(table.total, table.size, dtype=dtype, device=request.q.device)
    bias.masked_fill_(slots >= counts, -torch.inf)
    if request.key_bias is not None:
        row = request.key_bias[batch if request.key_bias.shape[0] > 1 else 0]
        start = table.video * table.size
        bias.view(-1)[start : start + layout.extra] = row.to(dtype)
    short = layout.grid.tokens % table.size != 0
    return bias, table.video - 1 if short else table.video


# Threads of several calls are started one call after the other: see `_compute_alone`.
_STARTING = threading.Lock()


def attend_rows(request: AttendRequest) -> Tensor:
    """Output (B, H, L, D); arithmetic in float32 (float64 for float64 inputs) whatever the input dtype.

    Heads are shared out among as many threads as torch would use, each computing alone: the products of one row are
    too small to be split well, and a thread that waits for another costs more than it brings on a busy machine.
    """
    batch, heads = request.q.shape[:2]
    out = new_output(request.q)
    with _STARTING:
        workers = min(torch.get_num_threads(), batch * heads)
    if workers == 1:
        _attend_heads(request, out, range(batch * heads))
        return out
    # Grad mode and inference mode are a thread's own.
    inference = torch.is_inference_mode_enabled()

    def work(first: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            _attend_heads(request, out, range(first, batch * heads, workers))

    _compute_alone(work, workers)
    return out


def _compute_alone(work: Callable[[int], None], workers: int) -> None:
    """Run work(0) to work(workers - 1) in as many threads, in each of which torch splits nothing among further threads.

    `torch.set_num_threads` sets a number of the calling thread's own (OpenMP's and MKL's), but also the one that a
    thread takes over when it first uses torch. So all of ours set theirs before any computes, and the common one is put
    back at once.
    """
    ready = threading.Barrier(workers + 1)

    def alone(index: int) -> None:
        torch.get_num_threads()  # takes over the common number; later that would undo the next line
        torch.set_num_threads(1)
        ready.wait()
        work(index)

    with ThreadPoolExecutor(workers) as pool:
        with _STARTING:
            threads = torch.get_num_threads()
            try:
                started = [pool.submit(alone, index) for index in range(workers)]
                ready.wait()
            except BaseException:
                # A thread that did not start would keep the others waiting.
                ready.abort()
                raise
            finally:
                torch.set_num_threads(threads)
        for done in started:
            done.result()


def _tail_of(request: AttendRequest, batch: int, head: int) -> Tail | None:
    """The tail of one head without terms that are zero for it; None if it drops its skipped blocks."""
    if request.tail is None:
        return None
    tail = request.tail.of_batch(batch, head)
    if tail.log_weight[0] == -torch.inf:
        return None
    if tail.u is not None and not tail.u.any():
        tail = replace(tail, u=None, w=None)
    return replace(tail, cov=None) if tail.u is None and tail.cov is not None and not tail.cov.any() else tail


def _skipped(queries: Tensor, keep: Tensor, q_size: int, tail: Tail) -> tuple[Tensor, Tensor]:
    """What the skipped blocks alone make of the video rows of a head, several query blocks at once.

    Kept blocks weigh nothing, but they count for a row's maximum, which costs nothing: their tokens together weigh at
    least what their mean key does (Jensen), so that what underflows beside it does not matter beside them either.

    Args:
        queries: (rows, D) in block order, scaled.
        keep: (q blocks, g) bool; q_size: rows of a query block, the last may be short.

    Returns:
        (rows, D) their attention and (rows, _FRONT) -inf but for the first column, which is the logarithm of their mass
        where a row skips anything.
    """
    rows, blocks = queries.shape[0], tail.k_mean.shape[0]
    step = max(1, _TAIL_BYTES // (q_size * blocks * queries.itemsize))
    out, free = torch.empty_like(queries), (~keep).to(queries.dtype)
    levels = queries.new_full((rows, _FRONT), -torch.inf)
    scores = queries.new_empty(step * q_size, blocks)
    along = torch.empty_like(scores)
    cuts = list(range(0, rows // q_size, step))
    parts = [(slice(first * q_size, min(rows // q_size, first + step) * q_size), first) for first in cuts]
    if rows % q_size:
        parts.append((slice(rows - rows % q_size, rows), rows // q_size))
    for part, first in parts:
        scaled, result = queries[part], out[part]
        count = len(scaled)
        weights = torch.addmm(tail.log_weight, scaled, tail.k_mean.t(), out=scores[:count])
        highest = weights.amax(1, keepdim=True)
        weights.sub_(highest).exp_()
        of_block = weights.view(-1, min(q_size, count), blocks)
        of_block.mul_(free[first : first + len(of_block), None])
        mass = weights.sum(1, keepdim=True)
        torch.mm(weights, tail.v_mean, out=result)
        if tail.cov is not None:
            result.addcmul_(mass, torch.mm(scaled, tail.cov))
        if tail.u is not None and tail.w is not None:
            for rank in range(tail.ranks):
                torch.mm(scaled, tail.u[:, rank].t(), out=along[:count]).mul_(weights)
                result.addmm_(along[:count], tail.w[:, rank])
        levels[part, :1] = highest + mass.log()
        result.div_(mass.clamp_min_(torch.finfo(mass.dtype).tiny))
    return out, levels


def _attend_heads(request: AttendRequest, out: Tensor, indices: range) -> None:
    """Write the output of some of the B * H heads."""
    tables = request.tables
    video = tables.q.bounds[tables.q.video]
    buffers = _Buffers.allocate(request)
    for index in indices:
        batch, head = divmod(index, request.q.shape[1])
        _fill(buffers.keys, request.k[batch, head], tables.perm, tables.k)
        _fill(buffers.values, request.v[batch, head], tables.perm, tables.k)
        tail, keep = _tail_of(request, batch, head), request.keep[batch, head]
        queries = request.q[batch, head].index_select(0, tables.perm).to(buffers.keys.dtype).mul_(request.scale)
        skipped = None
        if tail is not None:
            skipped = _skipped(queries[:video], keep[: tables.q.video, : tables.k.video], tables.q.size, tail)
        slots, first_biased = _column_bias(request, batch, buffers.keys.dtype)
        results = torch.empty_like(queries)
        # Counted for all rows at once: each question to a tensor costs a row some microseconds.
        counts, biased = keep.sum(1).tolist(), keep[:, first_biased:].sum(1).tolist()
        for row, kept in enumerate(torch.split(keep.nonzero()[:, 1], counts)):
            part = slice(tables.q.bounds[row], tables.q.bounds[row + 1])
            bias = slots[kept[-biased[row] :]].view(-1) if biased[row] else None
            # Rows of extra tokens skip nothing.
            given = None if skipped is None or row >= tables.q.video else (skipped[0][part], skipped[1][part])
            _attend_row(queries[part], kept, buffers, bias, given, results[part])
        out[batch, head].index_copy_(0, tables.perm, results.to(out.dtype))


def _attend_row(
    queries: Tensor,
    kept: Tensor,
    buffers: _Buffers,
    bias: Tensor | None,
    skipped: tuple[Tensor, Tensor] | None,
    out: Tensor,
) -> None:
    """Write the output (n, D) of one query block: queries (n, D) scaled, `kept` ascending block indices.

    Args:
        bias: of the last columns, as many as need one.
        skipped: (n, D) and (n, _FRONT), what `_skipped` found for these rows.
    """
    (blocks,), (_, size, dim) = kept.shape, buffers.keys.shape
    (rows, _), front, columns = queries.shape, 0 if skipped is None else _FRONT, blocks * size
    keys, values = buffers.kept_keys[:columns], buffers.kept_values[:columns]
    torch.index_select(buffers.keys, 0, kept, out=keys.view(blocks, size, dim))
    torch.index_select(buffers.values, 0, kept, out=values.view(blocks, size, dim))
    shape = rows, front + columns
    scores, weights = buffers.scores[: rows * shape[1]].view(shape), buffers.weights[: rows * shape[1]].view(shape)
    torch.mm(queries, keys.t(), out=scores[:, front:])
    if bias is not None:
        scores[:, shape[1] - bias.shape[0] :] += bias
    if skipped is None:
        torch.softmax(scores, 1, out=weights)
        torch.mm(weights, values, out=out)
        return
    # The tail is one more column: its logarithm is a score, its own attention the value.
    scores[:, :front] = skipped[1]
    torch.softmax(scores, 1, out=weights)
    torch.mm(weights[:, front:], values, out=out)
    out.addcmul_(weights[:, :1], skipped[0])
