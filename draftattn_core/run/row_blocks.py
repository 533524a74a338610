"""Exact attention of some query rows, cut by key block, so that any selection of blocks costs no second attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.types import Tail
from ..backends.request import AttendRequest
from ..backends.shared_tail import skipped_by
from ..geometry.layout import BlockTable, LayoutTables
from ..method.tail.gain import SplitRows


@dataclass(frozen=True, eq=False)
class RowBlocks:
    """Per sampled row and key block: the block's share of the softmax and its own attention output.

    Attention over any set of blocks is a softmax over the blocks' logits times the blocks' outputs. Both are normalised
    within the block, so nothing underflows however far a row's largest logit lies from the blocks that are kept.

    Attributes:
        q: (B, H, rows, D) the query rows, scale included; float32 (float64 for float64 calls).
        asking, level: (B, H, rows, D) and (B, H, rows, 1), what weighs the skipped blocks, see `skipped_by`.
        q_block: (rows,) query block of each row.
        logits: (B, H, rows, k blocks) log of the sum of exp over a block's tokens; -inf for a block hidden by the bias.
        outputs: (B, H, rows, k blocks, D) attention of the row over that block alone.
        video: number of video key blocks; those of extra tokens follow.
    """

    q: Tensor
    asking: Tensor
    level: Tensor
    q_block: Tensor
    logits: Tensor
    outputs: Tensor
    video: int

    @classmethod
    def of(cls, request: AttendRequest, positions: Tensor) -> RowBlocks:
        """Rows `positions` (rows,) of the block order, of video tokens; needs memory for rows x k blocks x D numbers
        per head, about a float32 copy of V with 64 rows and blocks of 64."""
        tables = request.tables
        dtype = torch.float64 if request.q.dtype == torch.float64 else torch.float32
        q = request.q.index_select(2, tables.perm[positions]).to(dtype) * request.scale
        tokens, missing = _slots(tables, tables.k)
        logits = torch.matmul(q, request.k.to(dtype).transpose(-1, -2))
        if request.key_bias is not None:
            before, video = tables.layout.extra_before, tables.layout.grid.tokens
            bias = request.key_bias.to(dtype)[:, None, None, :]
            logits[..., :before] += bias[..., :before]
            logits[..., before + video :] += bias[..., before:]
        logits = logits[..., tokens].masked_fill_(missing, -torch.inf)
        values = request.v.to(dtype)[:, :, tokens]
        whole = logits.logsumexp(-1)
        # A block hidden altogether has no softmax of its own.
        weights = (logits - whole.unsqueeze(-1)).exp_().masked_fill_((whole == -torch.inf).unsqueeze(-1), 0.0)
        outputs = torch.matmul(weights.transpose(2, 3), values).transpose(2, 3).contiguous()
        block = tables.q.of_token[positions]
        return cls(q, *skipped_by(request, q, block), block, whole, outputs, tables.k.video)

    def exact(self) -> Tensor:
        """(B, H, rows, D) dense attention of the rows."""
        return _mixed(self.logits.softmax(-1), self.outputs)

    def split(self, keep: Tensor, tail: Tail | None) -> SplitRows:
        """Kept blocks and tail of the rows under keep (B, H, rows, k blocks) bool, its extra-token blocks included.

        The tail is that of `method.tail` (design.md section 1). A row that keeps nothing and has no tail gives zeros.
        """
        kept_logits = self.logits.masked_fill(~keep, -torch.inf)
        if tail is None:
            kept = _mixed(kept_logits.softmax(-1).nan_to_num(), self.outputs)
            return SplitRows(kept, torch.zeros_like(kept), torch.zeros_like(kept[..., :1]))
        pooled = torch.matmul(self.asking, tail.k_mean.transpose(-1, -2)) + tail.log_weight[:, None] + self.level
        pooled = pooled.masked_fill(keep[..., : self.video], -torch.inf)
        weights = torch.cat([kept_logits, pooled], dim=-1).softmax(-1)
        kept, skipped = weights[..., : keep.shape[-1]], weights[..., keep.shape[-1] :]
        mass = skipped.sum(-1, keepdim=True)
        above = torch.matmul(skipped, tail.v_mean)
        if tail.cov is not None:
            above += mass * torch.matmul(self.q, tail.cov)
        if tail.u is not None and tail.w is not None:
            for rank in range(tail.ranks):
                along = torch.matmul(self.q, tail.u[:, :, :, rank].transpose(-1, -2))
                above += torch.matmul(skipped * along, tail.w[:, :, :, rank])
        return SplitRows(_mixed(kept, self.outputs), above, mass)


def _mixed(weights: Tensor, outputs: Tensor) -> Tensor:
    """weights (B, H, rows, blocks) times outputs (B, H, rows, blocks, D), summed over blocks: (B, H, rows, D)."""
    return torch.matmul(weights.unsqueeze(-2), outputs).squeeze(-2)


def _slots(tables: LayoutTables, table: BlockTable) -> tuple[Tensor, Tensor]:
    """Host tokens of every slot of every block (k blocks, block size), and which slots are past a block's end."""
    offsets = torch.arange(table.size, device=tables.perm.device)
    positions = table.starts[:-1, None] + offsets
    missing = positions >= table.starts[1:, None]
    return tables.perm[positions.clamp_max(tables.layout.tokens - 1)], missing
