"""What a dense run votes for CalibAtt's masks, where somebody asked for them; it never disturbs the run."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..geometry.layout import Layout
from ..phrase import Phrase
from .calibatt_recorder import CalibAttRecorder
from .calibration import Calibration
from .report import Position
from .telling import Telling


@dataclass(eq=False)
class Votes:
    """The votes of one run.

    Attributes:
        telling: how the user hears why there are none.
        recorder: None where nobody asked for masks.
    """

    telling: Telling
    recorder: CalibAttRecorder | None

    def refuse_ranks(self) -> None:
        """Vote no more: a vote is for all heads of a layer, and a rank sees some."""
        if self.recorder is None:
            return
        self.recorder = None
        self.telling.tell(
            Phrase(
                "note_masks_ranks",
                "masks are recorded by one process alone: this run over several ranks records none",
            )
        )

    def observe(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        position: Position,
        bias: Tensor | None,
    ) -> None:
        """Measure a dense call for masks. Never raises.

        Args:
            q, k, v: (B, H, L, D); layout: of its L tokens.
            position: where in the run.
            bias: see `draft_attention`.
        """
        if self.recorder is None or q.shape[2] != layout.tokens:
            return
        try:
            self.recorder.observe(q, k, v, layout, position, self.telling.steps.total, bias)
        except Exception as error:
            self.telling.tell(
                Phrase(
                    "note_no_vote",
                    "a dense call did not vote for masks: {error}",
                    error=f"{type(error).__name__}: {error}",
                )
            )

    def calibration(self, prompt: str | None) -> Calibration | None:
        """What the run voted, None if that is nothing; see `Run.calibration`."""
        if self.recorder is None:
            return None
        if self.telling.report.calls_sparse:
            self.telling.note(
                Phrase(
                    "note_sparse_no_vote",
                    "this run was sparse, so it did not vote for masks: calibrate without DraftAttention Sparse",
                )
            )
            return None
        return self.recorder.calibration(prompt)
