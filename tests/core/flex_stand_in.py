"""FlexAttention as documented, in plain torch: stands in for the compiled function, which takes seconds a kind."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.attention.flex_attention
from torch import Tensor


def emulated(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
    """What FlexAttention does with a BlockMask, read off its lists: listed blocks only, the mask function on those that
    are not full, the score function on all; a row without keys gives 0 and -inf."""
    mask, (q_size, k_size) = options["block_mask"], options["block_mask"].BLOCK_SIZE
    batch, heads, rows, columns = mask.kv_indices.shape
    assert q.shape[2] == rows * q_size and k.shape[2] == columns * k_size
    assert mask.kv_indices.dtype == mask.kv_num_blocks.dtype == torch.int32
    place = [torch.arange(n) for n in (batch, heads, q.shape[2], k.shape[2])]
    b, h, i, j = torch.meshgrid(*place, indexing="ij")
    scores = options["scale"] * torch.matmul(q.double(), k.double().transpose(-1, -2))
    if "score_mod" in options:
        scores = options["score_mod"](scores, b, h, i, j)
    allowed = torch.zeros(batch, heads, rows, columns, dtype=torch.int64)
    for code, counts, lists in (
        (1, mask.kv_num_blocks, mask.kv_indices),
        (2, mask.full_kv_num_blocks, mask.full_kv_indices),
    ):
        listed = torch.arange(columns) < counts.unsqueeze(-1)
        chosen = torch.zeros_like(allowed).scatter_add_(-1, lists.long(), listed.long())
        assert int(chosen.max()) <= 1
        allowed += code * chosen
    assert int(allowed.max()) <= 2  # no block is in both lists
    code = allowed.repeat_interleave(q_size, 2).repeat_interleave(k_size, 3)
    kept = (code == 2) | ((code == 1) & mask.mask_mod(b, h, i, j))
    scores = scores.masked_fill(~kept, -torch.inf)
    out = torch.matmul(scores.softmax(-1).nan_to_num(), v.double()).to(q.dtype)
    if "return_aux" not in options and not options.get("return_lse"):
        return out
    lse = scores.logsumexp(-1).float()
    if options.get("return_lse"):
        return out, lse
    return out, torch.nn.attention.flex_attention.AuxOutput(lse=lse)
