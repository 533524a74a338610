"""Published systems as rows: each as it drops blocks (or stands in for them) itself, and with our tail behind it.

Rules are asked for a share of work like every other row. What finding their masks costs is not counted: nothing for
Radial attention's static mask; 64 exact rows for Sparse VideoGen; one query per block for the errors of SVG-EAR; the
whole product of q and k, at two steps, for AdaSpa, and at every full step for Re-ttention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from benchmarks.quality.rows import Row, ours, paper, peers
from benchmarks.quality.selection import Chosen, Source
from benchmarks.quality.work import exact_share, solve, tail_shares
from draftattention.draftattn_core.geometry.per_head import per_head
from draftattention.draftattn_core.method.calibatt.energy import block_energy
from draftattention.draftattn_core.method.policy import Policy
from draftattention.draftattn_core.method.rules import rettention, rule_of
from draftattention.draftattn_core.method.rules.adaspa import SECOND_SEARCH, mask_from
from draftattention.draftattn_core.method.rules.call import HeadOrder, RuleCall
from draftattention.draftattn_core.run.probe import HeadTails
from draftattention.draftattn_core.run.published import PUBLISHED

# Re-ttention: every fifth step after the warm-up is full again, as published.
FULL_EVERY = 5
SYSTEMS = {
    "svg": "sparse videogen",
    "radial": "radial attention",
    "adaspa": "adaspa",
    "ear": "svg-ear",
}
# Beside them on captured calls: the Sol-Attn recipe, and the kernel of it that ComfyUI brings, in both orders.
PEERS = ("sol", "peer_topk", "kitchen_no_gain", "kitchen")


def baselines() -> list[Row]:
    """Every system as published, the same with our tail, our rule by the tail's error, Re-ttention; beside paper, ours
    and the peers."""
    rows = [paper(), ours(), *(row for row in peers() if row.name in PEERS)]
    for name, system in SYSTEMS.items():
        how = PUBLISHED[system]
        published = Row(
            name, f"{system} as published", "baseline", policy=how.policy,
            q_block=how.q_block, k_block=how.k_block, tile=how.tile, order=how.order,
        )  # fmt: skip
        with_tail = replace(how.policy, tail=ours().policy.tail)
        rows += [
            published,
            replace(published, name=f"{name}_tail", label=f"{system}, our tail", policy=with_tail, auto_gain=True),
        ]
    by_error = replace(ours().policy, method="tail_error")
    rows.append(replace(ours(), name="tail_error", label="ours, by the error of our tail", policy=by_error))
    window = Row(
        "rettention",
        "Re-ttention as published: window, ratio and residual of full steps",
        "baseline",
        "rettention",
        policy=Policy(method="head", tail="none", spread=False, keep_own=False),
        k_block=64,
        order="raster",
    )
    return [*rows, window]


def ordered(row: Row, source: Source) -> tuple[Source, HeadOrder | None]:
    """The call as the row's rule sees it: tokens of some heads in an order of their own, where it gives them one."""
    order_of = rule_of(row.policy.method).order
    order = None if order_of is None else order_of(_call(source, row.policy))
    if order is None:
        return source, None
    return Source(order.before(source.q), order.before(source.k), order.before(source.v), source.tables), order


def reorders(row: Row) -> bool:
    """Whether the row's rule gives heads an order of their own."""
    return rule_of(row.policy.method).order is not None


def _call(source: Source, policy: Policy) -> RuleCall:
    values = policy.of(source.heads)
    return RuleCall(source.q, source.k, source.v, source.tables, policy, values, source.scale)


def selects_alone(row: Row) -> bool:
    """Whether the row's rule looks at more than a draft's scores."""
    return row.kind == "policy" and rule_of(row.policy.method).ranking is None


def choose_by_rule(row: Row, source: Source, target: float, tails: HeadTails) -> Chosen | None:
    """As `selection.choose` for such a rule; `source` is that of `ordered`.

    A mask of whole bands or windows may miss the target: the work it comes closest with is counted.
    """
    tables, policy = source.tables, tails.put_into(row.policy)
    shares = tail_shares(tails.names, tables, source.q.shape[-1])
    tail_work = sum(shares) / len(shares)
    call = _call(source, policy)
    return _solved(_keep_at(row, source, call, policy), source, target - tail_work, tails, tail_work)


def _keep_at(row: Row, source: Source, call: RuleCall, policy: Policy) -> Callable[[float], Tensor]:
    if policy.method == "adaspa":
        # One search for all densities that the solver tries.
        energy = block_energy(source.q, source.k, source.tables, source.scale).blocks

        def by_mass(density: float) -> Tensor:
            each = per_head((density,) * source.heads, source.q.device, energy.dtype)
            return mask_from(energy, source.tables, each.unsqueeze(0))

        return by_mass
    select = rettention.select if row.kind == "rettention" else rule_of(policy.method).select

    def by_rule(density: float) -> Tensor:
        asked = policy.with_density(density)
        # What the call has made of k and v stays with it.
        again = replace(call, policy=asked, heads=asked.of(source.heads))
        for made in ("_expansion", "draft", "tail"):
            if made in vars(call):
                vars(again)[made] = vars(call)[made]
        keep = select(again)
        for made in ("_expansion", "draft", "tail"):
            if made in vars(again):
                vars(call)[made] = vars(again)[made]
        return keep

    return by_rule


def _solved(
    keep_at: Callable[[float], Tensor], source: Source, room: float, tails: HeadTails, tail_work: float
) -> Chosen | None:
    if room <= 0:
        return None
    found = solve(lambda x: exact_share(keep_at(x), source.tables), room, guess=room)
    if found is None:
        return None
    keep = keep_at(found)
    return Chosen(keep, tails, exact_share(keep, source.tables), tail_work, found)


def searches(row: Row, progress: float, known: Chosen | None, late: bool) -> bool:
    """Whether a row looks for its blocks anew: always, but for AdaSpa, which does so first and at `SECOND_SEARCH`."""
    if row.policy.method != "adaspa" or known is None:
        return True
    return progress >= SECOND_SEARCH and not late


@dataclass
class Rettention:
    """Re-ttention in one run: full steps leave ratio and residual, the steps between use them.

    The warm-up's last step (step 0 without one) and every `FULL_EVERY`th after it are full.

    Attributes:
        row: its row.
        target: mean share of work of the steps after the warm-up, full ones included.
        dense: steps of the warm-up; steps: of the run.
    """

    row: Row
    target: float
    dense: int
    steps: int
    _known: dict[tuple[int, int], rettention.Remembered] = field(default_factory=dict)

    @property
    def first(self) -> int:
        """The first step that is full and remembered."""
        return max(0, self.dense - 1)

    def is_full(self, step: int) -> bool:
        return step <= self.first or (step - self.first) % FULL_EVERY == 0

    def density(self) -> float:
        """Share of work left for each sparse step; not positive where the full steps take it all."""
        after = range(self.dense, self.steps)
        full = sum(self.is_full(step) for step in after)
        sparse = len(after) - full
        return (self.target * len(after) - full) / sparse if sparse else self.target

    def attend(
        self, source: Source, at: tuple[int, int], step: int, full: Callable[[], Tensor],
        masked: Callable[[Chosen], Tensor],
    ) -> tuple[Tensor, float]:  # fmt: skip
        """Output of one call and its share of work.

        Args:
            at: layer and branch.
            full, masked: compute the call densely, and with the blocks chosen.

        Raises:
            ValueError: if the full steps alone cost more than the target.
        """
        tails = HeadTails.of(self.row.policy, source.heads)
        call = _call(source, self.row.policy)
        chosen = _solved(_keep_at(self.row, source, call, self.row.policy), source, self.density(), tails, 0.0)
        if chosen is None:
            raise ValueError(f"{self.row.name} cannot run at {self.target:.0%}: its full steps cost more")
        if self.is_full(step):
            out = full()
            if step >= self.first:
                self._known[at] = rettention.remember(call, chosen.keep, out, masked(chosen))
            return out, 1.0
        since = (step - self.first) % FULL_EVERY - 1
        return self._known[at].corrected(masked(chosen), since), chosen.exact
