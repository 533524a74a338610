"""The error probe: exact attention of a few sampled query rows against what a sparse call makes of them.

The same logits give the error of every tail at once, and the gain that suits it best, so a user's own model, whose
weights we never saw, can say which tail suits each of its heads. Cost:
`rows` / L of a dense call, plus the pooled pass for those rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...kernels.types import Tail
from ..backends.request import AttendRequest
from ..backends.shared_tail import skipped_by
from ..geometry.blocks import head_chunks, without_autocast
from ..method.policy import TAILS, Policy, TailName, head_gains, head_tails
from ..method.tail.expand import expand_blocks, tail_from
from ..method.tail.gain import SplitRows, fit_gain, relative_error

DEFAULT_ROWS = 64
# From the quality bench: at equal work a rank per block that cuts the error by less than this loses to more density.
DEARER_GAIN = 0.1


@dataclass(frozen=True)
class ProbeResult:
    """Errors of one call.

    Attributes:
        rows: (rows,) host tokens that were sampled, video tokens only.
        exact: (B, H, rows, D) exact attention of those rows.
        errors: per tail, relative L2 error over the sampled rows: (B, H). The key "output" holds the error of the
            output the caller passed. Tails have no gain here.
        gains: per tail with pooled keys, the log gain that suits each head best: (H,). Empty if not asked for.
        fitted: per tail, the error with its gain: (B, H); see `fit_gain`. Empty if no gains were asked for.
    """

    rows: Tensor
    exact: Tensor
    errors: dict[str, Tensor]
    gains: dict[str, Tensor] = field(default_factory=dict)
    fitted: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class HeadTails:
    """What was found for the heads of one layer: each one's tail and log gain."""

    names: tuple[TailName, ...]
    gains: tuple[float, ...]

    def put_into(self, policy: Policy) -> Policy:
        return replace(policy, tail=self.names, tail_gain=self.gains)

    @classmethod
    def of(cls, policy: Policy, heads: int) -> HeadTails:
        """What `policy` asks for; raises ValueError if that is for another number of heads."""
        return cls(head_tails(policy.tail, heads), head_gains(policy.tail_gain, heads))


def sample_rows(video_tokens: int, rows: int, seed: int) -> Tensor:
    """`rows` distinct video tokens (block-order positions), uniform, on the CPU; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(video_tokens, generator=generator)[: min(rows, video_tokens)].sort().values


def probe_errors(
    request: AttendRequest,
    output: Tensor | None = None,
    tails: Sequence[TailName] = TAILS,
    *,
    rows: int = DEFAULT_ROWS,
    seed: int = 0,
    gains: bool = False,
) -> ProbeResult:
    """Relative error per head of `output` and of each of `tails`, under the selection of `request`.

    Args:
        request: the call; its own tail is not looked at, each of `tails` is made anew from k and v.
        output: (B, H, L, D) output of a sparse call to measure as well, or None.
        tails: which tails to evaluate; `linear1` and `linear2` cost a pass over k and v each call, so ask rarely.
        rows: how many query rows are sampled.
        seed: of the sampling.
        gains: also fit the gain of every tail.
    """
    tables = request.tables
    positions = sample_rows(tables.layout.grid.tokens, rows, seed).to(request.q.device)
    with without_autocast(request.q.device):
        parts = _probe_parts(request, output, tails, positions, gains)

    def joined(tables: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([table[name] for table in tables], dim=-1) for name in tables[0]}

    return ProbeResult(
        tables.perm[positions],
        torch.cat([part.exact for part in parts], dim=1),
        joined([part.errors for part in parts]),
        joined([part.gains for part in parts]),
        joined([part.fitted for part in parts]),
    )


def _probe_parts(
    request: AttendRequest, output: Tensor | None, tails: Sequence[TailName], positions: Tensor, gains: bool
) -> list[ProbeResult]:
    """`_probe_heads` of every group of heads."""
    parts = []
    for heads in head_chunks(request.k):
        part = replace(
            request,
            q=request.q[:, heads],
            k=request.k[:, heads],
            v=request.v[:, heads],
            keep=request.keep[:, heads],
            tail=None,
            counts=None,
        )
        parts.append(_probe_heads(part, None if output is None else output[:, heads], tails, positions, gains))
    return parts


def _probe_heads(
    request: AttendRequest, output: Tensor | None, tails: Sequence[TailName], positions: Tensor, gains: bool
) -> ProbeResult:
    """`probe_errors` for a few heads at once."""
    tables = request.tables
    tokens = tables.perm[positions]
    dtype = torch.float64 if request.q.dtype == torch.float64 else torch.float32
    q = request.q.index_select(2, tokens).to(dtype) * request.scale
    k, v = request.k.to(dtype), request.v.to(dtype)
    logits = add_key_bias(torch.matmul(q, k.transpose(-1, -2)), request)
    exact = torch.matmul(logits.softmax(-1), v)

    kept_blocks = request.keep[:, :, tables.q.of_token[positions]]
    kept_tokens = kept_blocks[:, :, :, tables.k.of_token[tables.inverse]]
    kept_logits = logits.masked_fill(~kept_tokens, -torch.inf)
    found = ProbeResult(tokens, exact, {})
    if output is not None:
        found.errors["output"] = relative_error(output.index_select(2, tokens), exact)
    expansion = expand_blocks(request.k, request.v, tables, tails)
    asking, level = skipped_by(request, q, tables.q.of_token[positions])
    for name in tails:
        tail = tail_from(expansion, name)
        if tail is None:
            found.errors[name] = relative_error(torch.matmul(kept_logits.softmax(-1).nan_to_num(), v), exact)
            found.fitted[name] = found.errors[name]
            continue
        pooled = torch.matmul(asking, tail.k_mean.transpose(-1, -2)) + tail.log_weight[None, :, None, :] + level
        rows = split_rows(q, v, kept_logits, pooled.masked_fill(kept_blocks[..., : tables.k.video], -torch.inf), tail)
        found.errors[name] = relative_error(rows.output(), exact)
        if gains:
            found.gains[name], found.fitted[name] = fit_gain(rows, exact)
    if not gains:
        found.fitted.clear()
    return found


def add_key_bias(logits: Tensor, request: AttendRequest) -> Tensor:
    """The logits (B, H, rows, L) of a request's rows, its key bias added in place."""
    if request.key_bias is not None:
        before, video = request.tables.layout.extra_before, request.tables.layout.grid.tokens
        bias = request.key_bias.to(logits.dtype)[:, None, None, :]
        logits[..., :before] += bias[..., :before]
        logits[..., before + video :] += bias[..., before:]
    return logits


def split_rows(q: Tensor, v: Tensor, kept_logits: Tensor, pooled: Tensor, tail: Tail) -> SplitRows:
    """Kept tokens and tail of the sampled rows q (B, H, rows, D), scale included; `pooled` logits of its blocks."""
    weights = torch.cat([kept_logits, pooled], dim=-1).softmax(-1)
    kept, skipped = weights[..., : v.shape[2]], weights[..., v.shape[2] :]
    mass = skipped.sum(-1, keepdim=True)
    above = torch.matmul(skipped, tail.v_mean)
    if tail.cov is not None:
        above += mass * torch.matmul(q, tail.cov)
    if tail.u is not None and tail.w is not None:
        for rank in range(tail.ranks):
            along = torch.matmul(q, tail.u[:, :, :, rank].transpose(-1, -2))
            above += torch.matmul(skipped * along, tail.w[:, :, :, rank])
    return SplitRows(torch.matmul(kept, v), above, mass)


def best_tails(result: ProbeResult, gain: float = DEARER_GAIN) -> tuple[TailName, ...]:
    """The tail with the smallest error for each head, errors averaged over the batch; reads the errors back.

    Tails are tried from the cheapest to the dearest, and a dearer one must cut the error by more than the share `gain`:
    its work would otherwise buy more as density. An error that is not a number never wins. Where gains were fitted,
    every tail is judged with its gain.
    """
    found = result.fitted or result.errors
    names: list[TailName] = [name for name in TAILS if name in found]
    table = torch.stack([found[name].mean(0) for name in names])
    chosen: list[TailName] = []
    for errors in torch.nan_to_num(table, nan=torch.inf).t().tolist():
        best = 0
        for candidate in range(1, len(names)):
            if errors[candidate] < (1.0 - gain) * errors[best]:
                best = candidate
        chosen.append(names[best])
    return tuple(chosen)


def gains_of(result: ProbeResult, names: Sequence[TailName]) -> tuple[float, ...]:
    """The fitted log gain of each head under its tail in `names`; 0 without one. Reads them back."""
    fitted = {name: gains.tolist() for name, gains in result.gains.items()}
    return tuple(float(fitted[name][head]) if name in fitted else 0.0 for head, name in enumerate(names))


def probe_tails(
    request: AttendRequest,
    asked: HeadTails,
    *,
    tail: bool,
    gain: bool,
    seed: int = 0,
    choices: Sequence[TailName] = TAILS,
) -> tuple[HeadTails, ProbeResult]:
    """Let the probe choose each head's tail, its gain, or both for the call of `request`.

    Args:
        asked: what the policy says; kept where the probe has no say.
        tail, gain: what the probe decides.
        seed: of the sampling.
        choices: tails it may choose from.
    """
    tails = choices if tail else tuple(dict.fromkeys(asked.names))
    probe = probe_errors(request, tails=tails, seed=seed, gains=gain)
    names = best_tails(probe) if tail else asked.names
    return HeadTails(names, gains_of(probe, names) if gain else asked.gains), probe
