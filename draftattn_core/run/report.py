"""The report of a run: every attention call counted once, sparse with its density or dense with a reason."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from torch import Tensor

from ..phrase import Text
from . import skips
from .pace import Pace
from .spent_budgets import SpentBudgets
from .step_cache.log import Decision
from .step_cache.settings import StepCacheSettings


class DenseReason(str, Enum):
    """Why a call ran dense. The closed list: nothing else appears in a report."""

    SCHEDULE = "schedule"
    DENSE_LAYER = "dense layer"
    FEW_TOKENS = "too few tokens"
    CROSS_ATTENTION = "not self-attention"
    UNKNOWN_GRID = "unknown token grid"
    TOKENS = "tokens not accounted for"
    MASK = "mask"
    BACKEND = "no backend"
    BUDGET = "budget"
    HEADS = "settings for another number of heads"
    NON_FINITE = "non-finite output"
    OUT_OF_MEMORY = "out of memory"
    ERROR = "error"
    STOOD_ASIDE = "stood aside after errors"

    def __str__(self) -> str:
        return self.value


EXPECTED_REASONS = frozenset(
    {DenseReason.SCHEDULE, DenseReason.DENSE_LAYER, DenseReason.BUDGET, DenseReason.CROSS_ATTENTION}
)


@dataclass(frozen=True)
class Position:
    """Where in a run a call stands.

    Attributes:
        step: index of the model evaluation's noise level in the run, from 0.
        progress: 0 at the noisiest end of sampling, 1 at the clean end.
        layer: index of the attention layer; layers: how many there are, 0 if unknown.
        branch: which condition the call serves ("cond", "uncond", "both", ...) where the host says so; diffusers does
            not. For listeners: nothing is decided or counted by it.
        first_head: number of the call's first head in its layer; all_heads: how many heads the layer has, 0 if the
            call holds them all. A device that holds some of the heads reads its part of the whole plan by them.
        conditional: for a batch that serves several conditions one after the other, of as many samples each, whether
            each is the conditional branch; empty if the host does not say. For calibration.
        heads: numbers of the call's heads where they do not follow each other; () where they do.
    """

    step: int
    progress: float
    layer: int
    layers: int = 0
    branch: str = ""
    first_head: int = 0
    all_heads: int = 0
    conditional: tuple[bool, ...] = ()
    heads: tuple[int, ...] = ()

    def numbers(self, count: int) -> tuple[int, ...]:
        """Numbers of the `count` heads of the call in their layer."""
        return self.heads or tuple(range(self.first_head, self.first_head + count))

    def __post_init__(self) -> None:
        if self.first_head < 0 or (self.first_head and self.first_head >= self.all_heads):
            raise ValueError(
                f"first_head {self.first_head} of all_heads {self.all_heads}: tell how many heads there are"
            )


@dataclass
class Call:
    """One counted call. Densities and times may be device values until the report is read.

    Attributes:
        position: where it stood; None for calls outside the video self-attention.
        density: share of its token pairs computed exactly, extra tokens included; None if dense.
        reason: why it was dense; None if sparse.
        pairs: token pairs of the call, over batch and heads; 0 keeps it out of the executed density.
        seconds: duration, read when asked.
        tail_work: work of the tail as a share of the dense call's (see `Attention.tail_work`).
        codes: share of its heads whose scores were those of INT8 codes.
    """

    position: Position | None
    density: Tensor | float | None
    reason: DenseReason | None
    pairs: float
    seconds: Callable[[], float]
    tail_work: float = 0.0
    codes: float = 0.0


@dataclass
class RunReport:
    """Counts of one run; thread-safe to add to, meant to be read after the run.

    Attributes:
        calls: every call in order of completion.
        notes: messages for the user, each once.
        tails: per layer, the tail each head ended up with, where the error probe chose.
        tail_heads: per layer, the numbers of the heads that these are about, where they are not all in order.
        tail_gains: per layer, the log gain each head's tail ended up with, where the error probe fitted it.
        tail_errors: per layer, the probe's mean relative error of each tail, with its gain where that was fitted.
        bits: per layer, in how many bits each head's scores were to be computed, where that was measured.
        bits_errors: per layer, the mean relative error of its heads in 16 bits and in 8.
        budgets: what measured errors made of the schedule's density, in order of progress.
        evaluations: (step, duration) of every evaluation of the whole model that was computed.
        outcomes: number of evaluations by what became of them: "computed", "reused", "forecast".
        answered: per step with evaluations that were answered without the model, what answered the last of them.
        decisions: what the step cache decided, and the errors it measured.
        skip: what the step cache may do; its rule is "off" where every evaluation is computed.
        steps: steps of the sampler, None if unknown.
        cancelled: how far a run came that ended early, in words: "cancelled after step 3 of 20"; None otherwise.
        started, finished: time.perf_counter() values.
    """

    calls: list[Call] = field(default_factory=list)
    notes: list[Text] = field(default_factory=list)
    tails: dict[int, tuple[str, ...]] = field(default_factory=dict)
    tail_heads: dict[int, tuple[int, ...]] = field(default_factory=dict)
    tail_gains: dict[int, tuple[float, ...]] = field(default_factory=dict)
    tail_errors: dict[int, dict[str, float]] = field(default_factory=dict)
    bits: dict[int, tuple[int, ...]] = field(default_factory=dict)
    bits_errors: dict[int, tuple[float, float]] = field(default_factory=dict)
    budgets: list[SpentBudgets] = field(default_factory=list)
    evaluations: list[tuple[int, Callable[[], float]]] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=dict)
    answered: dict[int, str] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()
    skip: StepCacheSettings = field(default_factory=StepCacheSettings)
    steps: int | None = None
    cancelled: Text | None = None
    started: float = field(default_factory=time.perf_counter)
    finished: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, call: Call) -> None:
        with self._lock:
            self.calls.append(call)

    def add_evaluation(self, step: int, seconds: Callable[[], float]) -> None:
        """Keep how long one evaluation of the whole model took; its attention calls are counted on their own."""
        with self._lock:
            self.evaluations.append((step, seconds))

    def add_outcome(self, outcome: str, step: int) -> None:
        """Count one evaluation by what became of it."""
        with self._lock:
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
            if outcome != "computed":
                self.answered[step] = outcome

    def keep_tails(self, position: Position, names: tuple[str, ...], gains: tuple[float, ...]) -> None:
        """Keep the tails and gains that the heads of a call ended up with."""
        layer = position.layer
        with self._lock:
            self.tails[layer], self.tail_gains[layer] = names, gains
            if position.all_heads:
                self.tail_heads[layer] = position.numbers(len(names))

    def keep_bits(self, position: Position, bits: tuple[int, ...], errors: tuple[float, float]) -> None:
        """Keep in how many bits the scores of a call's heads are computed, and its mean error in 16 and in 8."""
        with self._lock:
            self.bits[position.layer], self.bits_errors[position.layer] = bits, errors

    def note(self, message: Text) -> bool:
        """Keep a message for the user; False if it was there already."""
        with self._lock:
            if message in self.notes:
                return False
            self.notes.append(message)
            return True

    def finish(self) -> None:
        self.finished = time.perf_counter()

    @property
    def seconds(self) -> float:
        return (time.perf_counter() if self.finished is None else self.finished) - self.started

    @property
    def calls_sparse(self) -> int:
        return sum(call.reason is None for call in self.calls)

    def calls_dense(self) -> dict[str, int]:
        """Dense calls by reason, most frequent first."""
        return dict(Counter(str(call.reason) for call in self.calls if call.reason is not None).most_common())

    def sparse_density(self) -> float | None:
        """Share of token pairs computed in the sparse calls alone; None if there were none."""
        return self._share([call for call in self.calls if call.reason is None])

    def codes_share(self) -> float:
        """Share of the sparse calls' heads whose scores were those of INT8 codes, larger calls counting for more."""
        sparse = [call for call in self.calls if call.reason is None]
        total = sum(call.pairs for call in sparse)
        return sum(call.pairs * call.codes for call in sparse) / total if total else 0.0

    def executed_density(self) -> float | None:
        """Share of all token pairs of the run's video self-attention that were computed: dense steps, extra tokens
        and edges included; the number speed claims cite. None if no call counted."""
        return self._share(self.calls)

    def executed_in_words(self) -> str | None:
        """`executed_density` with two digits; None where the sparse calls alone have the same, or no call counted."""
        sparse, executed = self.sparse_density(), self.executed_density()
        told = None if executed is None else f"{executed:.2f}"
        return None if sparse is not None and told == f"{sparse:.2f}" else told

    @staticmethod
    def _share(calls: list[Call]) -> float | None:
        total = sum(call.pairs for call in calls)
        if total == 0:
            return None
        return sum(call.pairs * (1.0 if call.density is None else float(call.density)) for call in calls) / total

    def work_density(self) -> float | None:
        """`executed_density` with the work of the tails added: what the run's attention cost beside all dense."""
        executed, total = self.executed_density(), sum(call.pairs for call in self.calls)
        if executed is None:
            return None
        return executed + sum(call.pairs * call.tail_work for call in self.calls) / total

    def attention_seconds(self) -> float:
        """Time spent in the video self-attention, sparse and dense."""
        return sum(call.seconds() for call in self.calls if call.position is not None)

    def density_map(self) -> list[list[float | None]]:
        """Steps x layers: mean density of the calls there, 1 for dense, None where no call was seen."""
        placed = [call for call in self.calls if call.position is not None]
        if not placed:
            return []
        steps = 1 + max(call.position.step for call in placed if call.position)
        layers = 1 + max(call.position.layer for call in placed if call.position)
        cells: list[list[list[float]]] = [[[] for _ in range(layers)] for _ in range(steps)]
        for call in placed:
            if call.position:
                value = 1.0 if call.density is None else float(call.density)
                cells[call.position.step][call.position.layer].append(value)
        return [[sum(cell) / len(cell) if cell else None for cell in row] for row in cells]

    def mean_seconds(self) -> tuple[float | None, float | None]:
        """Mean time of a sparse and of a dense video self-attention call; None where there were none."""
        means: list[float | None] = []
        for sparse in (True, False):
            times = [c.seconds() for c in self.calls if c.position is not None and (c.reason is None) == sparse]
            means.append(sum(times) / len(times) if times else None)
        return means[0], means[1]

    def step_seconds(self) -> dict[int, float]:
        """Time of the model at each step that had a self-attention call; steps a cache skipped have none."""
        placed = {call.position.step for call in self.calls if call.position is not None}
        totals: dict[int, float] = {}
        for step, seconds in self.evaluations:
            if step in placed:
                totals[step] = totals.get(step, 0.0) + seconds()
        return totals

    def median_step_seconds(self) -> tuple[float | None, float | None]:
        """Median time of a step with sparse calls and of one with none; None where there were none.

        Without the run's first step, which pays for what is done once; see `Pace` for a dense one in its place.
        """
        return self._pace().median_steps()

    def _pace(self) -> Pace:
        placed = ((call.position, call.seconds(), call.reason is None) for call in self.calls)
        return Pace.of(self.evaluations, ((at.step, time, sparse) for at, time, sparse in placed if at is not None))

    @property
    def skipped(self) -> int:
        """Evaluations that were answered without the model."""
        return sum(count for outcome, count in self.outcomes.items() if outcome != "computed")

    def skip_error(self) -> float | None:
        """Mean relative L2 error of the predictions that computed evaluations were compared with; None if none was."""
        return skips.mean_error(self.decisions)

    def work(self) -> float | None:
        """Share of the dense run's work, with skipped evaluations at zero and attention at its share of the time.

        That share is measured on this run's dense evaluations, see `Pace`: their attention calls' time over their whole
        time. None where that is not known, or nothing was evaluated.
        """
        computed = self.outcomes.get("computed", 0)
        everything = computed + self.skipped
        if not everything or not computed:
            return None
        if not self.calls_sparse:
            return computed / everything
        work, share = self.work_density(), self._attention_share()
        return None if work is None or share is None else computed / everything * (1.0 - share + share * work)

    def _attention_share(self) -> float | None:
        """Attention's share of the time of a dense evaluation."""
        dense = self._pace().dense_evaluation()
        return dense.attention / dense.seconds if dense is not None and dense.seconds else None

    def speed_up(self) -> float | None:
        """How many times as long the run's evaluations would have taken had all been dense and computed: an estimate.

        A dense evaluation is taken to last as long as the median of those after the run's first step, which pays for
        loading, compiling and tuning. Where none of them was dense, it is put together: the median dense attention call
        times the calls of an evaluation, and the median time that later evaluations spent outside attention. None where
        neither was measured.
        """
        return self._pace().speed_up(self.skipped)

    def _told_skips(self) -> str:
        """What became of the evaluations, in words; nothing where nobody was to skip any."""
        if not self.skipped and not self.decisions:
            return ""
        return skips.told(self.outcomes, self.decisions, self.steps, self.skip.rule)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None for an error that is not a number."""
        return {
            "calls": len(self.calls),
            "calls_sparse": self.calls_sparse,
            "calls_dense": self.calls_dense(),
            "sparse_density": self.sparse_density(),
            "executed_density": self.executed_density(),
            "work_density": self.work_density(),
            "attention_seconds": self.attention_seconds(),
            "evaluations": dict(self.outcomes),
            "skip": {"rule": self.skip.rule, "threshold": self.skip.threshold, "share": self.skip.share},
            "skip_error": self.skip_error(),
            "decisions": skips.plain(self.decisions),
            "work": self.work(),
            "cancelled": self.cancelled,
            "step_seconds": {str(step): seconds for step, seconds in sorted(self.step_seconds().items())},
            "total_seconds": self.seconds,
            "density_map": self.density_map(),
            "int8_share": self.codes_share(),
            "bits": {str(layer): list(bits) for layer, bits in sorted(self.bits.items())},
            "tails": {str(layer): list(names) for layer, names in sorted(self.tails.items())},
            "tail_gains": {str(layer): list(gains) for layer, gains in sorted(self.tail_gains.items())},
            "tail_errors": {
                str(layer): {name: error if math.isfinite(error) else None for name, error in errors.items()}
                for layer, errors in sorted(self.tail_errors.items())
            },
            "budgets": [
                {**asdict(row), "after": {str(layer): list(heads) for layer, heads in row.after.items()}}
                for row in self.budgets
            ],
            "notes": list(self.notes),
        }

    @property
    def dense_by_plan(self) -> bool:
        """Whether the run skipped steps and was to be dense in those that it computed."""
        reasons = set(self.calls_dense()) - {DenseReason.CROSS_ATTENTION.value}
        return bool(self.skipped) and self.calls_sparse == 0 and reasons == {DenseReason.SCHEDULE.value}

    def summary(self) -> str:
        """One line that tells the story of the run."""
        placed = [call for call in self.calls if call.position is not None]
        sparse, executed = self.sparse_density(), self.executed_in_words()
        told = self._told_skips()
        line = "DraftAttention: " + (f"{self.cancelled}; " if self.cancelled else "")
        if not self.calls and self.outcomes:
            return line + self._with_speed_up(told or f"{sum(self.outcomes.values())} evaluations, all computed")
        line += f"{told}; " if told else ""
        if self.dense_by_plan:
            return self._with_speed_up(line + "attention dense, as planned")
        line += f"{self.calls_sparse} of {len(placed)} self-attention calls sparse"
        if sparse is not None:
            line += f" at density {sparse:.2f}"
            line += f", {self.codes_share():.0%} of their heads with INT8 scores" if self.codes_share() else ""
        dense = {r: n for r, n in self.calls_dense().items() if r != DenseReason.CROSS_ATTENTION.value}
        if dense:
            line += "; dense: " + ", ".join(f"{count} {reason}" for reason, count in dense.items())
        if executed is not None:
            line += f"; executed density {executed}"
        if self.skipped:
            return self._with_speed_up(line)
        for unit, (sparse_time, dense_time) in (("step", self.median_step_seconds()), ("call", self.mean_seconds())):
            if sparse_time and dense_time:
                faster = sparse_time <= dense_time
                ratio = dense_time / sparse_time if faster else sparse_time / dense_time
                return f"{line}; sparse {unit} {ratio:.1f}x {'faster' if faster else 'slower'} than dense {unit}"
        return line

    def _with_speed_up(self, line: str) -> str:
        if not self.skipped:
            return line
        factor = self.speed_up()
        return line + (f"; about {factor:.1f}x, estimated from this run's dense evaluations" if factor else "")
