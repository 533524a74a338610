"""The truth: the definition of sparse attention with a tail, written out with whole L x L maps. Slow on purpose."""

from __future__ import annotations

import torch
from torch import Tensor

from ..method.codes import fp8_values, key_codes, key_shift, query_codes
from .request import AttendRequest, new_output


def attend_reference(request: AttendRequest, dtype: torch.dtype = torch.float64) -> Tensor:
    """Output (B, H, L, D) in the dtype of q, computed in `dtype`; needs memory for several (B, H, L, L) maps.

    Heads with 8 bits have the scores of their codes, which are made in float32 as kernels make them, and with
    `fp8_values` such values; their weights stay as they are, since kernels round them beside a maximum of the moment.
    """
    q, k, v = (x.to(dtype) for x in (request.q, request.k, request.v))
    tables, tail = request.tables, request.tail
    q_block = tables.q.of_token[tables.inverse]
    k_block = tables.k.of_token[tables.inverse]

    logits = request.scale * torch.matmul(q, k.transpose(-1, -2))
    shift = _shift(request, dtype)
    if shift is not None:
        eight = [head for head, bits in enumerate(request.bits) if bits == 8]
        codes, scale = key_codes(request.k[:, eight], shift[:, eight].float(), tables)
        rows, unit = query_codes(request.q[:, eight])
        products = torch.matmul(rows.to(dtype), codes.to(dtype).transpose(-1, -2))
        logits[:, eight] = request.scale * products * unit.to(dtype) * scale.to(dtype).transpose(-1, -2)
        if request.fp8_values:
            v = v.clone()
            v[:, eight] = fp8_values(request.v[:, eight], tables).to(dtype)
    if request.key_bias is not None:
        before, video = tables.layout.extra_before, tables.layout.grid.tokens
        bias = request.key_bias.to(dtype)[:, None, None, :]
        logits[..., :before] += bias[..., :before]
        logits[..., before + video :] += bias[..., before:]
    kept = request.keep[:, :, q_block][:, :, :, k_block]
    logits = logits.masked_fill(~kept, -torch.inf)
    if tail is None:
        out = torch.matmul(logits.softmax(-1), v)
        return new_output(request.q).copy_(out)

    video = tables.k.video
    k_mean = tail.k_mean.to(dtype)
    if shift is not None and request.shift is None:
        k_mean = k_mean - shift.unsqueeze(2)
    pooled = request.scale * torch.matmul(q, k_mean.transpose(-1, -2))
    if request.shared_tail:
        pooled = _shared(q, k, request)
    pooled = pooled + tail.log_weight.to(dtype)[None, :, None, :]
    pooled = pooled.masked_fill(request.keep[:, :, q_block, :video], -torch.inf)
    weights = torch.cat([logits, pooled], dim=-1).softmax(-1)
    exact, skipped = weights[..., : logits.shape[-1]], weights[..., logits.shape[-1] :]
    out = torch.matmul(exact, v) + torch.matmul(skipped, tail.v_mean.to(dtype))
    if tail.cov is not None:
        out += request.scale * skipped.sum(-1, keepdim=True) * torch.matmul(q, tail.cov.to(dtype))
    if tail.u is not None and tail.w is not None:
        for rank in range(tail.ranks):
            along = torch.matmul(q, tail.u[:, :, :, rank].to(dtype).transpose(-1, -2))
            out += request.scale * torch.matmul(skipped * along, tail.w[:, :, :, rank].to(dtype))
    return new_output(request.q).copy_(out)


def _shift(request: AttendRequest, dtype: torch.dtype) -> Tensor | None:
    """(B, H, D) what the keys of heads with 8 bits are without, 0 for the others; None where there are none."""
    if 8 not in request.bits:
        return None
    if request.shift is not None:
        return request.shift.to(dtype)
    eight = torch.tensor([bits == 8 for bits in request.bits], device=request.k.device)
    return key_shift(request.k).to(dtype) * eight[:, None]


def _shared(q: Tensor, k: Tensor, request: AttendRequest) -> Tensor:
    """Logits (B, H, L, video k blocks) of skipped blocks where the rows of a query block share a tail."""
    tables = request.tables
    q_block, k_block = tables.q.of_token[tables.inverse], tables.k.of_token[tables.inverse]

    def means(x: Tensor, of_token: Tensor, blocks: int) -> Tensor:
        member = torch.nn.functional.one_hot(of_token, blocks).to(x.dtype)
        return torch.matmul((member / member.sum(0)).t(), x)

    keys = means(k, k_block, tables.k.total)
    centre = keys.mean(2, keepdim=True)
    of_block = torch.matmul(means(q, q_block, tables.q.total), (keys - centre).transpose(-1, -2))
    logits = of_block[:, :, q_block] + torch.matmul(q, centre.transpose(-1, -2))
    return request.scale * logits[..., : tables.k.video]
