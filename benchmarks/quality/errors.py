"""Error and recall of any selection and tail on sampled query rows of one call, without computing attention anew.

Per sampled row and key block the exact partial sums of the softmax (sum of e, sum of e v) are made once; dense
attention is the sum over all blocks, and a selection is the sum over the kept ones plus the tail. So a row of the
table costs a few milliseconds, and its error is that of the real method on those query rows, not an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.quality.selection import Chosen, Source
from draftattention.draftattn_core.geometry.layout import LayoutTables
from draftattention.draftattn_core.method.tail.gain import SplitRows, fit_gain
from draftattention.draftattn_core.run.probe import HeadTails

WORST_SHARE = 0.05


@dataclass(frozen=True)
class Errors:
    """Figures of one row in one call.

    Attributes:
        relative_l2: |out - dense| / |dense| per head over all sampled rows, mean over heads.
        worst: mean of the largest 5 % of |out - dense| / |dense| of single rows (all heads together).
        recall: softmax mass of the kept tokens, mean over sampled rows and heads.
    """

    relative_l2: float
    worst: float
    recall: float


def figures(out: Tensor, dense: Tensor, recall: Tensor) -> Errors:
    """Errors of out against dense, (heads, rows, D) each; recall (heads, rows)."""
    difference, size = (out - dense).square().sum(-1), dense.square().sum(-1)
    relative = (difference.sum(-1) / size.sum(-1)).sqrt().mean()
    single = (difference / size.clamp_min(1e-30)).sqrt().flatten()
    worst = single.topk(max(1, round(WORST_SHARE * single.numel()))).values.mean()
    return Errors(relative.item(), worst.item(), recall.mean().item())


class SampledRows:
    """Exact partial sums of some query rows of one call (batch 1), per key block of one layout."""

    def __init__(self, source: Source, tokens: Tensor) -> None:
        """tokens: (rows,) host tokens, the query rows to look at."""
        tables: LayoutTables = source.tables
        if tables.layout.extra or source.q.shape[0] != 1:
            raise ValueError("sampled rows are for calls of batch 1 without extra tokens")
        self.source, self.tokens, table = source, tokens, tables.k
        self.q_block = tables.q.of_token[tables.inverse[tokens]]
        self.q = source.q[0].index_select(1, tokens).float() * source.scale
        keys, values = (x[0].index_select(1, tables.perm).float() for x in (source.k, source.v))
        logits = torch.matmul(self.q, keys.transpose(-1, -2))
        self.peak = logits.amax(-1, keepdim=True)
        weights = (logits - self.peak).exp_()
        missing = table.video * table.size - weights.shape[-1]
        weights = torch.nn.functional.pad(weights, (0, missing)).unflatten(-1, (table.video, table.size))
        values = torch.nn.functional.pad(values, (0, 0, 0, missing)).unflatten(1, (table.video, table.size))
        self.mass = weights.sum(-1)
        # One product per head and block; (heads, rows, k blocks, D) because each row of the table sums over blocks.
        self.weighted = torch.matmul(weights.transpose(1, 2), values).transpose(1, 2).contiguous()
        self.dense = self.weighted.sum(2) / self.mass.sum(-1, keepdim=True)

    def split(self, chosen: Chosen) -> SplitRows:
        """Kept tokens and tail of attention under `chosen`, for the sampled rows: batch 1, all heads."""
        kept = chosen.keep[0, :, self.q_block].float()
        above = torch.matmul(kept.unsqueeze(2), self.weighted).squeeze(2)
        below = (kept * self.mass).sum(-1, keepdim=True)
        tail = self.source.tail(chosen.tails.names, chosen.tails.gains)
        if tail is None:
            return SplitRows((above / below)[None], torch.zeros_like(above)[None], torch.zeros_like(below)[None])
        pooled = torch.matmul(self.q, tail.k_mean[0].transpose(-1, -2)) + tail.log_weight[:, None, :]
        if chosen.shared_tail:
            pooled = pooled + self._shared(tail.k_mean[0])
        skipped = (pooled - self.peak).exp() * (1 - kept)
        mass = skipped.sum(-1, keepdim=True)
        stand_in = torch.matmul(skipped, tail.v_mean[0])
        if tail.cov is not None:
            stand_in += mass * torch.matmul(self.q, tail.cov[0])
        if tail.u is not None and tail.w is not None:
            for rank in range(tail.ranks):
                along = torch.matmul(self.q, tail.u[0, :, :, rank].transpose(-1, -2))
                stand_in += torch.matmul(skipped * along, tail.w[0, :, :, rank])
        whole = below + mass
        return SplitRows((above / whole)[None], (stand_in / whole)[None], (mass / whole)[None])

    def output(self, chosen: Chosen) -> Tensor:
        """What attention under `chosen` gives for the sampled rows: (heads, rows, D)."""
        return self.split(chosen).output()[0]

    def fitted(self, chosen: Chosen) -> HeadTails:
        """The tails of `chosen` with the gains that suit the sampled rows best, as the error probe fits them."""
        plain = replace(chosen, tails=HeadTails(chosen.tails.names, (0.0,) * len(chosen.tails.names)))
        gains, _ = fit_gain(self.split(plain), self.dense[None])
        return HeadTails(chosen.tails.names, tuple(gains.tolist()))

    def _shared(self, k_mean: Tensor) -> Tensor:
        """What turns each row's own tail scores (heads, rows, k blocks) into comfy-kitchen's.

        There keys are centred, and all rows of a query block share the scores of its mean on the centred keys.
        """
        shared = self.source.draft().q_mean[0][:, self.q_block] * self.source.scale
        centred = k_mean - k_mean.mean(1, keepdim=True)
        return torch.matmul(shared - self.q, centred.transpose(-1, -2))

    def errors(self, chosen: Chosen) -> Errors:
        kept = chosen.keep[0, :, self.q_block].float()
        recall = (kept * self.mass).sum(-1) / self.mass.sum(-1)
        return figures(self.output(chosen), self.dense, recall)
