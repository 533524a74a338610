"""Log of a run's evaluations: computed, reused or forecast, why, and by how much a prediction errs."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from ..evaluation import Outcome, Uncorrected
from .latents import relative_error
from .together import Together


class Reason(str, Enum):
    """Why an evaluation was computed or skipped. The closed list: nothing else appears in a log."""

    BELOW = "below the threshold"
    ABOVE = "threshold reached"
    FIRST = "first evaluations"
    LAST = "last evaluation"
    WINDOW = "outside the windows"
    HISTORY = "no history"
    BRANCH = "a branch without history"
    IN_A_ROW = "as many skipped in a row as allowed"
    REACH = "too far from the computed evaluations"
    PLANNED = "planned"
    ERRS = "forecasts err too much"
    LENGTH = "number of steps unknown"
    SAME_LEVEL = "computed noise level again"
    LEVEL_UP = "noise level went up"
    LATENT = "another latent"
    RANK = "another rank computes it"
    PREDICTION = "nobody says what the model predicts"
    ERROR = "error"
    STOOD_ASIDE = "stood aside after errors"

    def __str__(self) -> str:
        return self.value


class Reading:
    """A relative error that may still be on its device: the first reading waits for it, later ones cost nothing.

    Args:
        norms: see `error_norms`.
        together: the other ranks that hold a part of the latent; None if there are none.
    """

    def __init__(self, norms: Tensor, together: Together | None = None) -> None:
        self._norms = norms
        self._together = together
        self._value: float | None = None

    def read(self) -> float:
        """The error over all ranks; every rank reads it at once, the first time."""
        if self._value is None:
            norms = self._norms
            if self._together is not None:
                norms = self._together.summed(norms.square()).sqrt()
            self._value = float(relative_error(norms).item())
        return self._value

    def read_here(self) -> float:
        """What `read` found, else the error of what this rank holds."""
        return float(relative_error(self._norms).item()) if self._value is None else self._value


@dataclass(frozen=True)
class Decision:
    """What was decided about one evaluation of one stream of a run (see `cache`).

    Attributes:
        index: of the evaluation in the run, from 0.
        expert, window: the stream.
        level: noise level t of the flow, 0..1.
        progress: 0 at the noisiest end of sampling, 1 at the clean end.
        outcome: computed, reused or forecast; a branch that could not be predicted was computed all the same.
        reason: why.
        estimate: what the rule held against its threshold; None if another reason came first.
        error: of the prediction that would have stood in for this evaluation, measured because it was computed: norm of
            the error of the velocity over that of the velocity, worst of parts and batch entries. None if it was
            skipped or there was nothing to predict it from.
        branches_computed, branches_skipped: how many branches were answered either way.
        corrected: whether its output makes good what the forecasts before it missed.
        uncorrected: why it does not, where there were forecasts and corrections are wanted; else None.
    """

    index: int
    expert: Hashable
    window: Hashable
    level: float
    progress: float
    outcome: Outcome
    reason: Reason
    estimate: float | None
    error: float | None
    branches_computed: int
    branches_skipped: int
    corrected: bool = False
    uncorrected: Uncorrected | None = None


@dataclass(eq=False)
class OpenDecision:
    """A decision while its evaluation goes on."""

    index: int
    expert: Hashable
    window: Hashable
    level: float
    progress: float
    outcome: Outcome = Outcome.COMPUTED
    reason: Reason = Reason.HISTORY
    estimate: float | None = None
    error: Reading | None = None
    branches_computed: int = 0
    branches_skipped: int = 0
    corrected: bool = False
    uncorrected: Uncorrected | None = None

    @property
    def skips(self) -> bool:
        return self.outcome is not Outcome.COMPUTED

    def compute(self, reason: Reason) -> None:
        self.outcome, self.reason = Outcome.COMPUTED, reason

    def closed(self) -> Decision:
        return Decision(
            self.index,
            self.expert,
            self.window,
            self.level,
            self.progress,
            self.outcome,
            self.reason,
            self.estimate,
            None if self.error is None else self.error.read_here(),
            self.branches_computed,
            self.branches_skipped,
            self.corrected,
            self.uncorrected,
        )
