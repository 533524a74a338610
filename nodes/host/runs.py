"""One sampling run as ComfyUI has it: where in the noise its evaluations stand, what it tells the user at its end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...draftattn_core.phrase import Text
from ...draftattn_core.run.evaluation import StepCache, Uncorrected
from ...draftattn_core.run.events import Events
from ...draftattn_core.run.report import EXPECTED_REASONS, DenseReason, Position, RunReport
from ...draftattn_core.run.run import Run
from ..words import LINES, LIST, REMEDY, Joined, Words
from .layouts import NoLayout, Tokens, layer_count, other_lengths
from .run_words import counted, line_of, run_words

log = logging.getLogger(__name__)

# Relative; the host's own comparison of sigmas.
SAME_SIGMA = 1e-4

# What to do about a dense call, by its reason.
REMEDIES: Mapping[str, str] = {reason.value: Words(f"remedy_{reason.value}") for reason in DenseReason}


@dataclass
class ReportHandle:
    """What the node hands to nodes that show the run; it follows the model from run to run.

    Attributes:
        report: the run in progress or the last one; empty before the first.
        run: that run; None before the first.
        events: what the model's runs say; subscribe here, once for all runs.
        new_step_cache: makes the step cache of each run; None to compute every evaluation.
        grid: token grid of the last call.
    """

    report: RunReport = field(default_factory=RunReport)
    run: Run | None = None
    events: Events = field(default_factory=Events)
    new_step_cache: Callable[[], StepCache] | None = None
    grid: tuple[int, int, int] | None = None


@dataclass
class Trajectory:
    """Where a sigma stands in the model's whole noise range.

    Attributes:
        to_sigma: the model's percent_to_sigma, falling from its largest sigma at 0 to its smallest at 1.
        schedule: sigmas of this sampler run, as floats.
        uncorrected: None if the sampler takes plain Euler steps from one to the next (see `samplers`); else why not.
    """

    to_sigma: Callable[[float], float]
    schedule: tuple[float, ...]
    uncorrected: Uncorrected | None = Uncorrected.UNKNOWN
    _known: dict[float, float] = field(default_factory=dict)

    def progress(self, sigma: float) -> float:
        """0 at the noisiest end, 1 at the clean end: the inverse of percent_to_sigma, by bisection."""
        if sigma not in self._known:
            low, high = 0.0, 1.0
            for _ in range(40):
                middle = (low + high) / 2
                low, high = (middle, high) if float(self.to_sigma(middle)) > sigma else (low, middle)
            self._known[sigma] = high if high < 1e-9 else (low + high) / 2
        return self._known[sigma]

    @property
    def steps(self) -> int:
        """Steps of this sampler run."""
        return max(1, len(self.schedule) - 1)

    def step_of(self, sigma: float) -> int:
        """Step of this sampler run that a sigma belongs to; those of second-order samplers may lie between two."""
        passed = sum(level >= sigma * (1.0 - SAME_SIGMA) for level in self.schedule)
        return min(max(0, passed - 1), self.steps - 1)

    def next_level(self, sigma: float) -> float | None:
        """Where a plain Euler step leads from a sigma of the schedule; None from elsewhere and with other samplers."""
        step = self.step_of(sigma)
        if self.uncorrected is not None or step + 1 >= len(self.schedule):
            return None
        return self.schedule[step + 1] if abs(self.schedule[step] - sigma) <= SAME_SIGMA * sigma else None

    def whole_steps(self) -> int:
        """Steps of the whole trajectory, also where this sampler runs only its first or last part."""
        steps = self.steps
        if len(self.schedule) < 2:
            return steps
        share = self.progress(self.schedule[-1]) - self.progress(self.schedule[0])
        return steps if share <= 0 else max(steps, round(steps / share))

    def steps_before(self) -> int:
        """Steps of the whole trajectory that lie before this sampler run."""
        return min(round(self.progress(self.schedule[0]) * self.whole_steps()), self.whole_steps() - self.steps)

    @property
    def ends_clean(self) -> bool:
        """Whether no noise is left for another sampler."""
        return self.schedule[-1] <= 0.0


@dataclass
class ModelCall:
    """One evaluation of the diffusion model.

    Attributes:
        network: the host's diffusion model.
        tokens: what its video self-attention looks like, or why that is not known.
        lengths: lengths of the other sequences it brings along.
        step, progress, branch, conditional: see `Position`.
        seen: visits per block, see `layer_of`.
        counted: video self-attention calls so far.
        part, part_layer: queries seen so far of a self-attention that comes in parts, and its layer.
        served: whether our override is answering a call just now.
        overruled: whether a wrapper further in describes the same evaluation better.
        bias: key bias per mask object already checked.
        image: [start, end] of everything but the text, where the host told it just before an attention call.
    """

    network: Any
    tokens: Tokens | NoLayout
    lengths: frozenset[int]
    step: int
    progress: float
    branch: str
    conditional: tuple[bool, ...] = ()
    seen: dict[tuple[str, int], int] = field(default_factory=dict)
    counted: int = 0
    part: int = 0
    part_layer: int = 0
    served: bool = False
    overruled: bool = False
    bias: dict[int, Any] = field(default_factory=dict)
    image: tuple[int, int] | None = None

    def position(self, layer: int) -> Position:
        layers = layer_count(self.network)
        return Position(self.step, self.progress, layer, layers, self.branch, conditional=self.conditional)


@dataclass(frozen=True)
class Moment:
    """Where an evaluation of the model stands.

    Attributes:
        sigma: its noise level.
        step: index of that in the run, see `Position`.
        sampler_step: step of the sampler it belongs to.
        progress: see `Position`.
    """

    sigma: float
    step: int
    sampler_step: int
    progress: float


@dataclass(eq=False)
class Sampling:
    """One sampling run of one patched model: the core's run, and what only ComfyUI has.

    Attributes:
        run: the core's run.
        trajectory: its noise levels.
        model: the host's BaseModel that it was opened for.
        bypassed: attention modules that another node has replaced.
        attention: whether its attention is served, too; if not, only steps are skipped.
        positive: see `evaluations.positive_conditions`.
    """

    run: Run
    trajectory: Trajectory
    model: Any
    bypassed: tuple[str, ...] = ()
    attention: bool = True
    positive: frozenset[Hashable] = frozenset()
    _last_sigma: tuple[Tensor, int | None, float] | None = None
    _explanations: dict[str, Text] = field(default_factory=dict)

    def moment(self, options: Mapping[str, Any]) -> Moment:
        """Where a call of the model stands. Reads its sigma, which waits for the device: once for all conditions that
        the host calls with one tensor of them. The step cache waits for one number more at most."""
        sigmas = options.get("sigmas")
        sigma = self._read(sigmas) if sigmas is not None else self.trajectory.schedule[0]
        trajectory = self.trajectory
        return Moment(sigma, self.run.step_of(sigma), trajectory.step_of(sigma), trajectory.progress(sigma))

    def _read(self, sigmas: Tensor) -> float:
        """The first of them."""
        version = None if sigmas.is_inference() else sigmas._version
        last = self._last_sigma
        if last is not None and last[0] is sigmas and last[1] == version:
            return last[2]
        sigma = float(sigmas[0])
        self._last_sigma = (sigmas, version, sigma)
        return sigma

    def model_call(
        self,
        network: Any,
        tokens: Tokens | NoLayout,
        arguments: Mapping[str, Any],
        options: Mapping[str, Any],
        outer: ModelCall | None,
        moment: Moment | None = None,
    ) -> ModelCall:
        """What the attention calls of an evaluation need to know.

        Args:
            outer: the same evaluation as noted by a wrapper further out.
            moment: where it stands, if that was read.
        """
        lengths = other_lengths(arguments)
        if outer is not None:
            outer.overruled = True
            return ModelCall(network, tokens, lengths, outer.step, outer.progress, outer.branch, outer.conditional)
        moment = moment or self.moment(options)
        conditional = tuple(kind == 0 for kind in options.get("cond_or_uncond") or ())
        kinds = {"cond" if one else "uncond" for one in conditional}
        branch = "both" if len(kinds) > 1 else next(iter(kinds), "")
        return ModelCall(network, tokens, lengths, moment.step, moment.progress, branch, conditional)

    def explain(self, reason: DenseReason, message: Text) -> None:
        """Keep what a dense reason means in this run; the user is told at its end."""
        self.run.telling.note(message)
        self._explanations.setdefault(reason.value, message)

    def finish(self, cancelled: bool = False) -> None:
        """Close the run and say in one line how it went; with a remedy if nothing was sparse. Never raises.

        Args:
            cancelled: whether sampling was left by an exception.
        """
        try:
            self.run.finish(cancelled, self._story)
        except Exception:
            log.exception("DraftAttention: the report of this run could not be made")

    def _story(self, report: RunReport) -> str:
        """The run in words, which are logged too."""
        if self.bypassed and self.attention:
            self.explain(DenseReason.CROSS_ATTENTION, self._bypass(report))
        line = run_words(report)
        if report.calls_sparse or report.dense_by_plan or not self.attention:
            log.info(line)
            for message in self._explanations.values():
                log.warning("DraftAttention: %s", message)
        elif report.cancelled and not self._unexpected(report):
            log.info(line)
        else:
            verdict = self._verdict(report)
            line = line_of([*([report.cancelled] if report.cancelled else []), verdict])
            log.warning(line)
            report.note(verdict)
        return Joined([line, *(note for note in report.notes if note not in line)], LINES)

    def _unexpected(self, report: RunReport) -> bool:
        """Whether calls were dense that the user did not ask to be."""
        dense = {DenseReason(name) for name in report.calls_dense()}
        return bool(self.bypassed or dense - EXPECTED_REASONS)

    def _verdict(self, report: RunReport) -> Text:
        """What kept every call of the run dense, and what to do about it."""
        counts = {name: n for name, n in report.calls_dense().items() if name != DenseReason.CROSS_ATTENTION.value}
        unexpected = [name for name in counts if DenseReason(name) not in EXPECTED_REASONS]
        reason = next(iter([*unexpected, *counts]), DenseReason.CROSS_ATTENTION.value)
        dense = counted(counts, "reason")
        happened = Words("run_nothing_sparse_but", dense=dense) if dense else Words("run_nothing_sparse")
        return Joined([happened, *filter(None, [self._explanations.get(reason)]), REMEDIES[reason]], REMEDY)

    def _bypass(self, report: RunReport) -> Text:
        if any(call.position is not None for call in report.calls):
            return Words("bypass_some", names=self._names())
        return Words("bypass_all", names=self._names())

    def _names(self) -> Text:
        shown = Joined(self.bypassed[:3], LIST)
        more = len(self.bypassed) - 3
        return shown if more <= 0 else Words("bypass_more", names=shown, count=more)
