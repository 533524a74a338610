"""One evaluation of the model: the attention of all its layers, and how far each method is from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from benchmarks.quality.capture import CapturedCall
from benchmarks.quality.raw import significant
from benchmarks.quality.work import exact_share, tail_shares
from draftattention.draftattn_core import Settings, TableCache
from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.geometry.blocks import block_means
from draftattention.draftattn_core.geometry.layout import LayoutTables
from draftattention.draftattn_core.method.draft import Draft
from draftattention.draftattn_core.method.policy import Policy
from draftattention.draftattn_core.method.selection import select_from_draft
from draftattention.draftattn_core.method.tail.expand import Expansion, expand_blocks, tail_from
from draftattention.draftattn_core.run.error_curve import ErrorCurves, error_curves
from draftattention.draftattn_core.run.probe import sample_rows
from draftattention.draftattn_core.run.row_blocks import RowBlocks

JUDGED_ROWS = 256
WORST_SHARE = 0.05
# What a bench row says of one layer: squared error, squared norm, mean of the worst 5 % of rows, exact work, tail's.
Score = list[float]


@dataclass(eq=False)
class LayerCall:
    """One captured call in the pack's own layout, with what several methods need of it."""

    call: CapturedCall
    settings: Settings
    cache: TableCache
    _expansion: Expansion | None = field(default=None, init=False)

    @property
    def tables(self) -> LayoutTables:
        return self.cache.get(self.settings.layout(self.call.grid), self.call.q.device)

    @property
    def scale(self) -> float:
        return float(self.call.q.shape[-1] ** -0.5)

    @cached_property
    def request(self) -> AttendRequest:
        """The call, dense."""
        tables, q = self.tables, self.call.q
        keep = torch.ones(*q.shape[:2], tables.q.total, tables.k.total, dtype=torch.bool)
        return AttendRequest(q, self.call.k, self.call.v, tables, keep, None, None, self.scale)

    @cached_property
    def positions(self) -> Tensor:
        """Judged rows, in block order; other ones than those that curves are measured on."""
        call = self.call
        return sample_rows(call.grid.tokens, JUDGED_ROWS, 1000 + 100 * call.seed + 10 * call.step + call.layer)

    @cached_property
    def rows(self) -> RowBlocks:
        return RowBlocks.of(self.request, self.positions)

    @cached_property
    def exact(self) -> Tensor:
        """(1, H, rows, D)."""
        return self.rows.exact()

    @cached_property
    def expansion(self) -> Expansion:
        tail = self.settings.policy.tail
        return expand_blocks(
            self.call.k, self.call.v, self.tables, (tail,) if isinstance(tail, str) else tail, spread=True
        )

    @cached_property
    def draft(self) -> Draft:
        q_mean = block_means(self.call.q, self.tables.perm, self.tables.q)
        return Draft(q_mean, self.expansion.k_mean, self.expansion.k_spread)

    def curves(self, rows: int) -> ErrorCurves:
        """As a run measures them, on `rows` rows."""
        tail = self.settings.policy.tail
        names = (tail,) if isinstance(tail, str) else tuple(dict.fromkeys(tail))
        return error_curves(self.request, self.settings.policy, names, rows=rows, seed=self.call.layer).cpu()

    def score_policy(self, policy: Policy) -> Score:
        """What the pack's attention under `policy` loses on the judged rows."""
        keep = select_from_draft(self.draft, self.tables, policy, self.scale)
        return self.score_kept(keep, policy)

    def score_kept(self, keep: Tensor, policy: Policy) -> Score:
        """The same with a selection (1, H, q blocks, k blocks) from elsewhere; only the tails of `policy` count."""
        values = policy.of(keep.shape[1])
        works = tail_shares(values.tails, self.tables, self.call.q.shape[-1])
        out = self.judged_output(keep, policy)
        return self.score_rows(out, exact_share(keep, self.tables), sum(works) / len(works))

    def judged_output(self, keep: Tensor, policy: Policy) -> Tensor:
        """(1, H, rows, D) output of the judged rows under a selection and the tails of `policy`."""
        values = policy.of(keep.shape[1])
        tail = tail_from(self.expansion, values.tails, values.gains) if policy.has_tail else None
        return self.rows.split(keep[:, :, self.rows.q_block], tail).output()

    def head_errors(self, policy: Policy) -> tuple[Tensor, Tensor]:
        """(H,) squared error of one judged row under `policy`, and under its selection with no tail behind it."""
        keep = select_from_draft(self.draft, self.tables, policy, self.scale)
        outputs = (self.judged_output(keep, one) for one in (policy, replace(policy, tail="none", tail_gain=0.0)))
        ours, dropped = ((out - self.exact).square().sum(-1).mean((0, 2)) for out in outputs)
        return ours, dropped

    def score_output(self, out: Tensor, exact: float, tail_work: float) -> Score:
        """What a whole output (1, H, L, D) in the host's order loses on the judged rows."""
        return self.score_rows(out[:, :, self.tables.perm[self.positions]].float(), exact, tail_work)

    def score_rows(self, out: Tensor, exact: float, tail_work: float) -> Score:
        difference, size = (out - self.exact).square().sum(-1), self.exact.square().sum(-1)
        single = (difference / size.clamp_min(1e-30)).sqrt().flatten()
        worst = single.topk(max(1, round(WORST_SHARE * single.numel()))).values.mean()
        count = len(self.positions)
        figures = (difference.sum() / count, size.sum() / count, worst, exact, tail_work)
        return [significant(float(x)) for x in figures]

    def dense(self) -> Score:
        """A layer that runs dense."""
        return self.score_rows(self.exact, 1.0, 0.0)


@dataclass(frozen=True)
class Evaluation:
    """All layers of one evaluation, in order; `progress` of its step."""

    layers: tuple[LayerCall, ...]
    progress: float

    def scored(self, score: Callable[[LayerCall], Score]) -> list[Score]:
        return [score(layer) for layer in self.layers]
