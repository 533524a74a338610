"""CPU: one query block at a time, gathered keys, one matrix product each way. Skipped blocks cost nothing.

Memory beside the inputs, per thread: float32 K and V of one head, their gathered copies and one row of scores, all
reused; never an L x L map. Large gathered batches lose here (page faults and cache misses), a Python loop over rows
does not.
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
from ..method.tail.formula import add_linear_terms
from .request import AttendRequest, new_output


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
        columns = (table.video if request.tail is not None else 0) + table.total * table.size
        new = request.q.new_empty
        return cls(
            keys=request.q.new_zeros(blocks, dtype=dtype),
            values=request.q.new_zeros(blocks, dtype=dtype),
            kept_keys=new((columns, dim), dtype=dtype),
            kept_values=new((columns, dim), dtype=dtype),
            scores=new(request.tables.q.size * columns, dtype=dtype),
            weights=new(request.tables.q.size * columns, dtype=dtype),
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


def _attend_heads(request: AttendRequest, out: Tensor, indices: range) -> None:
    """Write the output of some of the B * H heads."""
    tables = request.tables
    buffers = _Buffers.allocate(request)
    for index in indices:
        batch, head = divmod(index, request.q.shape[1])
        _fill(buffers.keys, request.k[batch, head], tables.perm, tables.k)
        _fill(buffers.values, request.v[batch, head], tables.perm, tables.k)
        tail = _tail_of(request, batch, head)
        if tail is not None:
            buffers.kept_keys[: tables.k.video] = tail.k_mean
            buffers.kept_values[: tables.k.video] = tail.v_mean
        bias = _column_bias(request, batch, buffers.keys.dtype)
        keep = request.keep[batch, head]
        for row, kept in enumerate(torch.split(keep.nonzero()[:, 1], keep.sum(1).tolist())):
            tokens = tables.perm[tables.q.bounds[row] : tables.q.bounds[row + 1]]
            queries = request.q[batch, head].index_select(0, tokens).to(buffers.keys.dtype) * request.scale
            result = _attend_row(queries, kept, buffers, bias, tail)
            out[batch, head].index_copy_(0, tokens, result.to(out.dtype))


def _attend_row(
    queries: Tensor, kept: Tensor, buffers: _Buffers, bias: tuple[Tensor, int], tail: Tail | None
) -> Tensor:
    """Output (n, D) of one query block: queries (n, D) scaled, `kept` ascending block indices."""
    size, dim = buffers.keys.shape[1:]
    pooled = 0 if tail is None else tail.k_mean.shape[0]
    columns = pooled + len(kept) * size
    for gathered, blocks in ((buffers.kept_keys, buffers.keys), (buffers.kept_values, buffers.values)):
        torch.index_select(blocks, 0, kept, out=gathered[pooled:columns].view(len(kept), size, dim))
    scores = buffers.scores[: len(queries) * columns].view(len(queries), columns)
    weights = buffers.weights[: len(queries) * columns].view(len(queries), columns)
    torch.mm(queries, buffers.kept_keys[:columns].t(), out=scores)
    slots, first_biased = bias
    biased = kept[kept >= first_biased]
    if len(biased):
        scores[:, columns - len(biased) * size :] += slots[biased].view(-1)
    if tail is not None:
        scores[:, :pooled] += tail.log_weight
        scores[:, :pooled].index_fill_(1, kept[kept < pooled], -torch.inf)
    torch.softmax(scores, 1, out=weights)
    result = torch.mm(weights, buffers.kept_values[:columns])
    if tail is not None and tail.cov is not None:
        skipped = weights[:, :pooled]
        add_linear_terms(result, skipped, skipped.sum(1, keepdim=True), queries, tail)
    return result
