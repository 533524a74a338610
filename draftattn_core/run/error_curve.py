"""Error curves: what each head of a call loses at several densities, from exact attention of a few sampled rows.

The exact rows are computed once and cut by key block (`RowBlocks`). At each density the real selection says which
blocks of those rows are kept; the tail stands in for the others. Cost beside a dense call: `rows` / L, one draft and
one expansion as in any sparse call, and one sort of the draft map per density.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..backends.request import AttendRequest
from ..geometry.blocks import block_means, without_autocast
from ..geometry.layout import LayoutTables
from ..method.draft import Draft
from ..method.policy import TAILS, Policy, TailName
from ..method.selection import select_from_draft
from ..method.tail.expand import expand_blocks, tail_from
from ..method.tail.gain import SplitRows, fit_gain
from ..phrase import Phrase
from .probe import DEARER_GAIN, DEFAULT_ROWS, sample_rows
from .row_blocks import RowBlocks

# Even in ratio: errors fall like a power of the density over most of the range.
CURVE_DENSITIES = (0.03, 0.05, 0.08, 0.13, 0.2, 0.32, 0.5, 0.75)
_CHUNK_BYTES = 256 << 20


@dataclass(frozen=True, eq=False)
class ErrorCurves:
    """Error of every head of one call at several densities; tensors on the call's device, float32 or float64.

    Attributes:
        densities: (points,) what the selection was asked for, ascending.
        kept: (H, points) share of the video's token pairs that it kept: forced blocks and floors may make it more.
        squared: (H, points) |out - exact|^2 of one row, mean over the sampled rows and the batch, in the squared
            unit of V. Of rows that had no say in the gain.
        norms: (H,) |exact|^2 of one row, the same mean.
        tails: (H,) int64 index into `TAILS`, the head's tail.
        gains: (H, points) log gain of that tail, fitted to all sampled rows.
    """

    densities: tuple[float, ...]
    kept: Tensor
    squared: Tensor
    norms: Tensor
    tails: Tensor
    gains: Tensor

    @property
    def heads(self) -> int:
        return int(self.kept.shape[0])

    @property
    def relative(self) -> Tensor:
        """(H, points) relative L2 error over the sampled rows."""
        return (self.squared / self.norms.unsqueeze(-1).clamp_min(1e-30)).sqrt()

    def names(self) -> tuple[TailName, ...]:
        """Each head's tail by name; reads them back from the device."""
        return tuple(TAILS[index] for index in self.tails.tolist())

    def cpu(self) -> ErrorCurves:
        """The same on the CPU in float64, for solvers and files; waits for the device."""
        kept, squared, norms, gains = (x.double().cpu() for x in (self.kept, self.squared, self.norms, self.gains))
        return ErrorCurves(self.densities, kept, squared, norms, self.tails.cpu(), gains)


def error_curves(
    request: AttendRequest,
    policy: Policy,
    tails: Sequence[TailName],
    *,
    densities: Sequence[float] = CURVE_DENSITIES,
    rows: int = DEFAULT_ROWS,
    seed: int = 0,
    gains: bool = True,
) -> ErrorCurves:
    """Curves of the call of `request`: its selection, tail and density are not looked at.

    Where gains are fitted, each half of the rows is judged with the gain of the other half (two-fold cross-validation),
    per density, so that the curve is not flattered by the fit.

    Args:
        policy: selection rule, floor, spread and forced blocks; its density and tails are replaced.
        tails: what every head may choose from. With more than one, a head takes the tail whose error is smallest over
            all densities (geometric mean), tried from the cheapest; a dearer one must be better by `DEARER_GAIN`.
        densities: ascending, within 0..1.
        rows: query rows sampled, at least 2; seed: of the sampling.
        gains: fit gains; else all are 0.

    Raises:
        ValueError: for densities out of order or range, no tail, fewer than two rows, or the rule `top_p`, which is not
            asked by density.
    """
    densities = tuple(float(density) for density in densities)
    if policy.method == "top_p":
        raise ValueError(
            Phrase(
                "budgets_top_p",
                "the rule top_p keeps a mass, not a density: choose another rule for budgets by error",
            )
        )
    if not densities or list(densities) != sorted(set(densities)) or densities[0] < 0.0 or densities[-1] > 1.0:
        raise ValueError(f"the densities of an error curve must ascend within 0..1, got {densities}")
    if rows < 2 or not tails:
        raise ValueError("an error curve needs at least two sampled rows and one tail")
    tables, heads = request.tables, request.q.shape[1]
    names: tuple[TailName, ...] = tuple(name for name in TAILS if name in tails)
    positions = sample_rows(tables.layout.grid.tokens, rows, seed).to(request.q.device)
    per_head = request.q.shape[0] * tables.k.total * (len(positions) + tables.k.size) * request.q.shape[3] * 4
    step = max(1, _CHUNK_BYTES // per_head)
    parts = []
    with without_autocast(request.q.device):
        for start in range(0, heads, step):
            part = _of_heads(request, slice(start, min(start + step, heads)))
            parts.append(_curves(part, policy, names, densities, positions, gains))
    kept, squared, norms, chosen, log_gains = (torch.cat(each) for each in zip(*parts, strict=True))
    return ErrorCurves(densities, kept, squared, norms, chosen, log_gains)


def _of_heads(request: AttendRequest, part: slice) -> AttendRequest:
    q, k, v = request.q[:, part], request.k[:, part], request.v[:, part]
    return replace(request, q=q, k=k, v=v, keep=request.keep[:, part], tail=None, counts=None)


def _curves(
    request: AttendRequest,
    policy: Policy,
    names: Sequence[TailName],
    densities: Sequence[float],
    positions: Tensor,
    gains: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """kept, squared, norms, tails and gains of `ErrorCurves` for a few heads at once."""
    tables = request.tables
    rows = RowBlocks.of(request, positions)
    exact = rows.exact()
    expansion = expand_blocks(request.k, request.v, tables, names, spread=policy.spread)
    q_mean = block_means(request.q, tables.perm, tables.q)
    # Heads without a tail are selected by other scores and keep at least one block per row.
    kept: dict[bool, list[tuple[Tensor, Tensor]]] = {}
    for drops in dict.fromkeys(name == "none" for name in names):
        draft = Draft(q_mean, expansion.k_mean, None if drops else expansion.k_spread)
        of_kind = replace(policy, tail="none" if drops else names[-1], tail_gain=0.0)
        kept[drops] = [
            _kept(select_from_draft(draft, tables, of_kind.with_density(density), request.scale), tables, rows.q_block)
            for density in densities
        ]

    found = []
    for name in names:
        tail = tail_from(expansion, name)
        points = [
            (share, *_judged(rows.split(keep, tail), exact, gains and tail is not None))
            for keep, share in kept[name == "none"]
        ]
        found.append([torch.stack(each, dim=-1) for each in zip(*points, strict=True)])

    shares, squared, fitted = (torch.stack(each) for each in zip(*found, strict=True))
    best = _cheapest_good(squared)
    chosen = best.view(1, -1, 1).expand(1, *squared.shape[1:])
    shares, squared, fitted = (table.gather(0, chosen)[0] for table in (shares, squared, fitted))
    index = torch.tensor([TAILS.index(name) for name in names], device=best.device)[best]
    return shares, squared, exact.square().sum(-1).mean((0, 2)), index, fitted


def _kept(keep: Tensor, tables: LayoutTables, q_block: Tensor) -> tuple[Tensor, Tensor]:
    """Kept blocks of the sampled rows, (B, h, rows, k blocks), and the share of the video's token pairs kept, (h,)."""
    rows, columns = tables.q.video, tables.k.video
    keys = torch.matmul(keep[:, :, :rows, :columns].float(), tables.k.counts[:columns])
    share = torch.matmul(keys, tables.q.counts[:rows]).mean(0) / float(tables.layout.grid.tokens) ** 2
    return keep[:, :, q_block], share


def _judged(rows: SplitRows, exact: Tensor, gains: bool) -> tuple[Tensor, Tensor]:
    """(h,) squared error of one row, of rows that had no say in the gain, and the gain fitted to all of them."""
    if not gains:
        squared = (rows.output() - exact).square().sum(-1).mean((0, 2))
        return squared, torch.zeros_like(squared)
    # Rows are in block order: every second one, so that both halves see the whole video.
    halves = [(_some(rows, half), exact[:, :, half]) for half in (slice(0, None, 2), slice(1, None, 2))]
    total = torch.zeros_like(exact[0, :, 0, 0])
    for (fit_rows, fit_exact), (rows_left, exact_left) in (halves, halves[::-1]):
        gain, _ = fit_gain(fit_rows, fit_exact)
        total = total + (rows_left.output(gain) - exact_left).square().sum((0, 2, 3))
    return total / (exact.shape[0] * exact.shape[2]), fit_gain(rows, exact)[0]


def _some(rows: SplitRows, part: slice) -> SplitRows:
    return SplitRows(rows.kept[:, :, part], rows.skipped[:, :, part], rows.mass[:, :, part])


def _cheapest_good(squared: Tensor) -> Tensor:
    """(h,) int64: which of the tails (tails, h, points), cheapest first, each head takes; see `error_curves`."""
    scores = squared.clamp_min(1e-30).log().mean(-1).nan_to_num(nan=torch.inf) / 2
    best, least = torch.zeros_like(scores[0], dtype=torch.int64), scores[0]
    for candidate in range(1, len(scores)):
        better = scores[candidate] < least + math.log(1.0 - DEARER_GAIN)
        best = torch.where(better, candidate, best)
        least = torch.where(better, scores[candidate], least)
    return best
