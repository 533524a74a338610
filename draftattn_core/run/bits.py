"""Bits: which heads may have scores of INT8 codes, by what codes add to the error of a few sampled query rows.

The rows' exact attention is computed as the error probe does, then what the sparse call makes of them with the scores
of Q and K and with those of their codes. A head whose error grows by more than `MOST_FACTOR` and by more than
`MOST_ADDED` stays at 16 bits. Where weights and values are to be in FP8, that is part of it. Weights and sums in
float16, which kernels use on some GPUs, are not: they add about 2e-4 (docs/kernels.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..backends.request import AttendRequest
from ..geometry.blocks import head_chunks, without_autocast
from ..method.codes import fp8_values, fp8_weights, key_codes, key_shift, query_codes
from ..method.policy import Bits
from ..method.tail.gain import relative_error
from .probe import DEFAULT_ROWS, add_key_bias, sample_rows, split_rows

MOST_FACTOR = 1.03
MOST_ADDED = 0.002


@dataclass(frozen=True)
class BitsErrors:
    """Relative L2 error of each head of a sparse call over its sampled rows, beside exact attention: (B, H) each."""

    sixteen: Tensor
    eight: Tensor

    def bits(self) -> tuple[Bits, ...]:
        """8 for each head whose error stays within the bounds, the batch taken together; reads them back."""
        sixteen, eight = self.sixteen.mean(0), self.eight.mean(0)
        within = eight <= torch.maximum(MOST_FACTOR * sixteen, sixteen + MOST_ADDED)
        return tuple(8 if fine else 16 for fine in within.tolist())


def bits_errors(
    request: AttendRequest, *, rows: int = DEFAULT_ROWS, seed: int = 0, fp8_values: bool = False
) -> BitsErrors:
    """Errors of the call of `request`, with its selection and its tail, in either kind of scores.

    Args:
        request: the call; its own bits are not looked at.
        rows: how many query rows are sampled.
        seed: of the sampling.
        fp8_values: with 8 bits, whether weights and values are in FP8 as well.
    """
    positions = sample_rows(request.tables.layout.grid.tokens, rows, seed).to(request.q.device)
    found = []
    with without_autocast(request.q.device):
        for heads in head_chunks(request.k):
            q, k, v, keep = (x[:, heads] for x in (request.q, request.k, request.v, request.keep))
            tail = None if request.tail is None else request.tail.of_heads(heads)
            if tail is not None and request.shift is not None:
                tail = replace(tail, k_mean=tail.k_mean + request.shift[:, heads].unsqueeze(2))
            found.append(
                _errors(replace(request, q=q, k=k, v=v, keep=keep, tail=tail, counts=None), positions, fp8_values)
            )
    return BitsErrors(*(torch.cat(errors, dim=1) for errors in zip(*found, strict=True)))


def _errors(request: AttendRequest, positions: Tensor, fp8: bool) -> tuple[Tensor, Tensor]:
    """`bits_errors` of a few heads at once."""
    tables, tail = request.tables, request.tail
    dtype = torch.float64 if request.q.dtype == torch.float64 else torch.float32
    rows = request.q.index_select(2, tables.perm[positions])
    q, k, v = rows.to(dtype) * request.scale, request.k.to(dtype), request.v.to(dtype)
    kept_blocks = request.keep[:, :, tables.q.of_token[positions]]
    kept_tokens = kept_blocks[:, :, :, tables.k.of_token[tables.inverse]]
    pooled = kept_blocks
    if tail is not None:
        tail = tail.to(dtype)
        pooled = torch.matmul(q, tail.k_mean.transpose(-1, -2)) + tail.log_weight[None, :, None, :]
        pooled = pooled.masked_fill(kept_blocks[..., : tables.k.video], -torch.inf)

    def sparse(logits: Tensor, fp8: bool = False) -> Tensor:
        kept = logits.masked_fill(~kept_tokens, -torch.inf)
        if tail is None:
            weights = kept.softmax(-1).nan_to_num()
            return in_fp8(weights, weights) if fp8 else torch.matmul(weights, v)
        rows = split_rows(q, v, kept, pooled, tail)
        if fp8:
            weights = torch.cat([kept, pooled], dim=-1).softmax(-1)
            rows = replace(rows, kept=in_fp8(weights[..., : v.shape[2]], weights))
        return rows.output()

    def in_fp8(kept: Tensor, weights: Tensor) -> Tensor:
        # Beside the row's maximum: kernels have that of the moment.
        top = weights.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return torch.matmul(fp8_weights(kept / top).to(dtype) * top, fp8_values(request.v, tables).to(dtype))

    logits = add_key_bias(torch.matmul(q, k.transpose(-1, -2)), request)
    exact = torch.matmul(logits.softmax(-1), v)
    sixteen = relative_error(sparse(logits), exact)
    shift = key_shift(request.k)
    codes, scale = key_codes(request.k, shift, tables)
    row_codes, row_scale = query_codes(rows)
    products = torch.matmul(row_codes, codes.transpose(-1, -2)).to(dtype)
    logits = products * (row_scale * request.scale).to(dtype) * scale.to(dtype).transpose(-1, -2)
    # With what was subtracted put back, the pooled keys may stay as they are.
    logits = logits + torch.matmul(q, shift.to(dtype).unsqueeze(-1))
    return sixteen, relative_error(sparse(add_key_bias(logits, request), fp8), exact)
