"""Which evaluation a call of the model belongs to, in which stream, and what was decided about it.

An evaluation begins at another noise level, or where a branch is asked for again. Its calls (conditions one by one,
windows in turn) find the decision that its first call opened.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from ..evaluation import Evaluation
from .flow import kind_of
from .log import OpenDecision, Reason
from .stream import Stream

# Windows that come round in turns meet again after a few evaluations; a stream idle for longer is freed.
IDLE = 4
# Relative. Hosts compute noise levels in float32, those between steps through logarithms, so that one visited twice may
# differ by rounding; steps lie much further apart.
SAME_LEVEL = 1e-5


class Visits:
    """The streams of a run and the log of its decisions.

    Attributes:
        streams: by expert and window.
        log: decisions in order.
        index: of the evaluation that goes on, -1 before the first.
    """

    def __init__(self) -> None:
        self.streams: dict[tuple[Hashable, Hashable], Stream] = {}
        self.log: list[OpenDecision] = []
        self.index = -1
        self._level = 0.0

    def at_its_level(self, evaluation: Evaluation) -> Evaluation:
        """The evaluation at the level of the one before, where rounding alone tells them apart."""
        near = self.index >= 0 and abs(evaluation.level - self._level) <= SAME_LEVEL * self._level
        return replace(evaluation, level=self._level) if near else evaluation

    def enter(self, evaluation: Evaluation) -> Stream:
        """The stream of a call."""
        key = evaluation.expert, evaluation.window
        stream = self.streams.get(key)
        again = (
            stream is not None
            and self.current(stream) is not None
            and any(branch.key in stream.served for branch in evaluation.branches)
        )
        if self.index < 0 or evaluation.level != self._level or again:
            self.index += 1
            self._level = evaluation.level
            for other, idle in list(self.streams.items()):
                if other != key and (idle.decision is None or idle.decision.index < self.index - IDLE):
                    del self.streams[other]
        return self.streams.setdefault(key, Stream())

    def current(self, stream: Stream) -> OpenDecision | None:
        """The decision about the evaluation that goes on, None before there is one."""
        decision = stream.decision
        return decision if decision is not None and decision.index == self.index else None

    def open(self, stream: Stream, evaluation: Evaluation, level: float) -> OpenDecision:
        """The decision about the evaluation that goes on; to compute it unless something else was decided."""
        decision = self.current(stream)
        if decision is None:
            decision = OpenDecision(self.index, evaluation.expert, evaluation.window, level, evaluation.progress)
            self.log.append(decision)
            stream.decision, stream.served = decision, {}
        return decision

    def serve(self, stream: Stream, evaluation: Evaluation) -> None:
        """Take note that the branches of a call have their answers."""
        for index, branch in enumerate(evaluation.branches):
            stream.served[branch.key] = index == evaluation.conditional

    def withdraw(self, evaluation: Evaluation, reason: Reason) -> None:
        """A call that was answered is computed after all."""
        stream = self.streams.get((evaluation.expert, evaluation.window))
        if stream is None or stream.decision is None:
            return
        for branch in evaluation.branches:
            stream.served.pop(branch.key, None)
        stream.decision.branches_skipped -= len(evaluation.branches)
        stream.compute_after_all(reason)


def level_of(evaluation: Evaluation) -> float:
    """Noise level t of the flow; the host's own where nobody says what the model predicts."""
    kind = kind_of(evaluation)
    return evaluation.level if kind is None else kind.level(evaluation.level)
