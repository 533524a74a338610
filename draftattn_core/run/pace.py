"""How long the steps of a run took, and from that how long a dense evaluation takes and what the run gained on it.

The first step pays for what is done once: loading weights, compiling, tuning kernels. So its time stands for no other
step. Where no later step is dense, a dense evaluation is put together from parts that the first step does not make
longer: its attention from the middle one of the dense calls, of which only the first few pay for anything, and the rest
of the model from later steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median, median_low


@dataclass(frozen=True)
class StepTimes:
    """What was measured of one step that the model computed.

    Attributes:
        seconds: of its evaluations together; evaluations: how many they are.
        attention: seconds of its video self-attention calls together; calls: how many they are.
        sparse: whether one of those was sparse.
    """

    seconds: float
    evaluations: int
    attention: float
    calls: int
    sparse: bool


@dataclass(frozen=True)
class DenseEvaluation:
    """Seconds of a dense evaluation that is not in the run's first step, and of the attention in it."""

    seconds: float
    attention: float


@dataclass(frozen=True)
class Pace:
    """The times of a run.

    Attributes:
        steps: in the order in which they were computed.
        dense_calls: seconds of every dense video self-attention call.
    """

    steps: Sequence[StepTimes]
    dense_calls: Sequence[float]

    @classmethod
    def of(
        cls, evaluations: Iterable[tuple[int, Callable[[], float]]], calls: Iterable[tuple[int, float, bool]]
    ) -> Pace:
        """From step and time of the evaluations, and step, time and sparseness of the video self-attention calls."""
        whole: dict[int, list[float]] = {}
        for step, seconds in evaluations:
            whole.setdefault(step, []).append(seconds())
        inside: dict[int, list[tuple[float, bool]]] = {step: [] for step in whole}
        dense_calls = []
        for step, time, sparse in calls:
            inside.setdefault(step, []).append((time, sparse))
            dense_calls += [] if sparse else [time]
        steps = [
            StepTimes(
                sum(times),
                len(times),
                attention=sum(time for time, _ in inside[step]),
                calls=len(inside[step]),
                sparse=any(sparse for _, sparse in inside[step]),
            )
            for step, times in whole.items()
        ]
        return cls(steps, dense_calls)

    def _later(self) -> list[StepTimes]:
        """Steps after the first. Where there is attention, one that had none was answered by somebody else."""
        attends = any(step.calls for step in self.steps)
        return [step for step in self.steps[1:] if step.calls or not attends]

    def dense_evaluation(self) -> DenseEvaluation | None:
        """A dense evaluation: the median of the dense steps after the first, or put together where there is none.

        None where nothing tells: no step after the first, or calls that were not timed.
        """
        later = self._later()
        dense = [step for step in later if not step.sparse]
        if dense:
            seconds = median(step.seconds / step.evaluations for step in dense)
            return DenseEvaluation(seconds, median(step.attention / step.evaluations for step in dense))
        timed = [seconds for seconds in self.dense_calls if seconds > 0.0]
        if not timed or not later or not all(step.attention > 0.0 for step in later):
            return None
        attention = median_low(timed) * median(step.calls / step.evaluations for step in later)
        rest = median(max(0.0, step.seconds - step.attention) / step.evaluations for step in later)
        return DenseEvaluation(attention + rest, attention)

    def median_steps(self) -> tuple[float | None, float | None]:
        """Median time of a step with sparse calls and of one with dense ones alone; None where there were none.

        The first step is left out where there are others: where only it is dense, a `dense_evaluation` for each of its
        evaluations stands for it.
        """
        steps = [step for step in self.steps if step.calls]
        sparse = [step.seconds for step in steps[1:] if step.sparse] or [step.seconds for step in steps if step.sparse]
        dense = [step.seconds for step in steps[1:] or steps if not step.sparse]
        if not dense and steps and not steps[0].sparse:
            evaluation = self.dense_evaluation()
            dense = [] if evaluation is None else [evaluation.seconds * steps[0].evaluations]
        return median(sparse) if sparse else None, median(dense) if dense else None

    def speed_up(self, skipped: int) -> float | None:
        """How many times as long the run's evaluations would have taken, had all been dense and computed.

        A first step that was dense counts on both sides as it was: what it paid for once, it would have paid for then.

        Args:
            skipped: evaluations that were answered without the model.
        """
        spent, dense = sum(step.seconds for step in self.steps), self.dense_evaluation()
        if dense is None or not spent:
            return None
        first, rest = self.steps[0], sum(step.evaluations for step in self.steps[1:]) + skipped
        begun = first.evaluations * dense.seconds if first.sparse else first.seconds
        return (begun + rest * dense.seconds) / spent
