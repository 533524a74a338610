"""One sampling run: its session, where in the noise it stands, what it tells the user."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...draftattn_core.attention import Attention
from ...draftattn_core.run.report import EXPECTED_REASONS, DenseReason, Position, RunReport, stopwatch
from ...draftattn_core.run.session import Session
from .layouts import NoLayout, Tokens, latent, layer_count, other_lengths

log = logging.getLogger(__name__)

Listener = Callable[[Attention, Position], None]

REMEDIES: Mapping[str, str] = {
    DenseReason.SCHEDULE.value: "the schedule keeps all of this dense: raise the sparsity or shorten the dense start",
    DenseReason.DENSE_LAYER.value: "every layer is in the list of dense layers: shorten it",
    DenseReason.FEW_TOKENS.value: "the video is too small to gain anything: raise size or length, or lower min_tokens",
    DenseReason.CROSS_ATTENTION.value: "no video self-attention was seen: remove nodes that replace the attention",
    DenseReason.UNKNOWN_GRID.value: "this model is not supported: remove the node",
    DenseReason.TOKENS.value: "where the model's tokens belong is not known: sample without guides, or remove the node",
    DenseReason.MASK.value: "the model masks video tokens: give its guides strength 1, or remove the node",
    DenseReason.BACKEND.value: "no backend can serve this call: set backend to auto",
    DenseReason.HEADS.value: "the profile was made on a model with other heads: make one on this model",
    DenseReason.NON_FINITE.value: "the output was not finite: load the model in bfloat16",
    DenseReason.OUT_OF_MEMORY.value: "memory ran out: lower the resolution or the length",
    DenseReason.ERROR.value: "something failed, see the traceback above: please report it",
    DenseReason.STOOD_ASIDE.value: "something failed, see the traceback above: please report it",
}


@dataclass
class ReportHandle:
    """What the node hands to nodes that show the run; it follows the model from run to run.

    Attributes:
        report: the run in progress or the last one; empty before the first.
        session: the core's session of that run; None before the first.
        listeners: called after every sparse call with its internals; a listener that fails is dropped.
        grid: token grid of the last call.
    """

    report: RunReport = field(default_factory=RunReport)
    session: Session | None = None
    listeners: list[Listener] = field(default_factory=list)
    grid: tuple[int, int, int] | None = None

    def tell(self, result: Attention, position: Position) -> None:
        for listener in tuple(self.listeners):
            try:
                listener(result, position)
            except Exception as error:
                self.listeners.remove(listener)
                self.report.note(f"a picture of this run could not be taken: {type(error).__name__}: {error}")
                log.exception("DraftAttention: a listener failed and was dropped")


@dataclass
class Trajectory:
    """Where a sigma stands in the model's whole noise range.

    Attributes:
        to_sigma: the model's percent_to_sigma, falling from its largest sigma at 0 to its smallest at 1.
        schedule: sigmas of this sampler run, as floats.
    """

    to_sigma: Callable[[float], float]
    schedule: tuple[float, ...]
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

    def whole_steps(self) -> int:
        """Steps of the whole trajectory, also where this sampler runs only its first or last part."""
        steps = max(1, len(self.schedule) - 1)
        if len(self.schedule) < 2:
            return steps
        share = self.progress(self.schedule[-1]) - self.progress(self.schedule[0])
        return steps if share <= 0 else max(steps, round(steps / share))


@dataclass
class ModelCall:
    """One evaluation of the diffusion model.

    Attributes:
        network: the host's diffusion model.
        tokens: what its video self-attention looks like, or why that is not known.
        lengths: lengths of the other sequences it brings along.
        step, progress, branch: see `Position`.
        seen: visits per block, see `layer_of`.
        counted: video self-attention calls so far.
        part, part_layer: queries seen so far of a self-attention that comes in parts, and its layer.
        served: whether our override is answering a call just now.
        overruled: whether a wrapper further in describes the same evaluation better.
        bias: key bias per mask object already checked.
        image: [start, end] of everything but the text, where the host told it just before an attention call.
        stop: stops the time of the whole evaluation; None where a wrapper further out takes it.
    """

    network: Any
    tokens: Tokens | NoLayout
    lengths: frozenset[int]
    step: int
    progress: float
    branch: str
    seen: dict[tuple[str, int], int] = field(default_factory=dict)
    counted: int = 0
    part: int = 0
    part_layer: int = 0
    served: bool = False
    overruled: bool = False
    bias: dict[int, Any] = field(default_factory=dict)
    image: tuple[int, int] | None = None
    stop: Callable[[], Callable[[], float]] | None = None

    def position(self, layer: int) -> Position:
        return Position(self.step, self.progress, layer, layer_count(self.network), self.branch)


@dataclass
class Run:
    """One sampling run of one patched model."""

    session: Session
    trajectory: Trajectory
    bypassed: tuple[str, ...] = ()
    tell_node: Callable[[str], None] | None = None
    _level: int = -1
    _explanations: dict[str, str] = field(default_factory=dict)

    def model_call(
        self,
        network: Any,
        tokens: Tokens | NoLayout,
        arguments: Mapping[str, Any],
        options: Mapping[str, Any],
        outer: ModelCall | None,
    ) -> ModelCall:
        """Note a model evaluation and where it stands.

        Args:
            outer: the same evaluation as noted by a wrapper further out, which has read the sigma already.
        """
        lengths = other_lengths(arguments)
        if outer is not None:
            outer.overruled = True
            return ModelCall(network, tokens, lengths, outer.step, outer.progress, outer.branch)
        sigmas = options.get("sigmas")
        sigma = float(sigmas[0]) if sigmas is not None else self.trajectory.schedule[0]
        step = self.session.step_of(sigma)
        if step > self._level:
            self._level = step
            self._progress_text(step)
        kinds = {"cond" if kind == 0 else "uncond" for kind in options.get("cond_or_uncond") or ()}
        branch = "both" if len(kinds) > 1 else next(iter(kinds), "")
        progress, stop = self.trajectory.progress(sigma), stopwatch(latent(arguments).device)
        return ModelCall(network, tokens, lengths, step, progress, branch, stop=stop)

    def explain(self, reason: DenseReason, message: str) -> None:
        """Keep what a dense reason means in this run; the user is told at its end."""
        self.session.report.note(message)
        self._explanations.setdefault(reason.value, message)

    def finish(self) -> None:
        """Close the run and say in one line how it went; with a remedy if nothing was sparse. Never raises."""
        try:
            report = self.session.finish_run()
            if self.bypassed:
                self.explain(DenseReason.CROSS_ATTENTION, self._bypass(report))
            line = report.summary()
            if report.calls_sparse:
                log.info(line)
                for message in self._explanations.values():
                    log.warning("DraftAttention: %s", message)
            else:
                verdict = self._verdict(report)
                line = f"DraftAttention: {verdict}"
                log.warning(line)
                report.note(verdict)
            self.show("\n".join([line, *(note for note in report.notes if note not in line)]))
        except Exception:
            log.exception("DraftAttention: the report of this run could not be made")

    def _verdict(self, report: RunReport) -> str:
        """What kept every call of the run dense, and what to do about it."""
        counts = {name: n for name, n in report.calls_dense().items() if name != DenseReason.CROSS_ATTENTION.value}
        unexpected = [name for name in counts if DenseReason(name) not in EXPECTED_REASONS]
        reason = next(iter([*unexpected, *counts]), DenseReason.CROSS_ATTENTION.value)
        dense = ", ".join(f"{count} {name}" for name, count in counts.items())
        happened = f"nothing was sparse ({dense})" if dense else "nothing was sparse"
        return ": ".join([happened, *filter(None, [self._explanations.get(reason)]), REMEDIES[reason]])

    def _bypass(self, report: RunReport) -> str:
        if any(call.position is not None for call in report.calls):
            return f"another node replaces some of this model's attention: {self._names()}"
        return f"another node replaces the model's attention, DraftAttention never saw it: {self._names()}"

    def _names(self) -> str:
        shown = ", ".join(self.bypassed[:3])
        return shown if len(self.bypassed) <= 3 else f"{shown} and {len(self.bypassed) - 3} more"

    def _progress_text(self, step: int) -> None:
        if self.tell_node is None or step == 0:
            return
        report = self.session.report
        unexpected = [r for r in report.calls_dense() if DenseReason(r) not in EXPECTED_REASONS]
        placed = sum(call.position is not None for call in report.calls)
        text = f"{report.calls_sparse} of {placed} self-attention calls sparse"
        self.show(text + (f"; dense: {', '.join(unexpected)}" if unexpected else ""))

    def show(self, text: str) -> None:
        """Put text under the node in the browser, in place of what was there. Never raises."""
        if self.tell_node is None:
            return
        try:
            self.tell_node(text)
        except Exception:
            self.tell_node = None
            log.exception("DraftAttention: the text under the node could not be shown")
