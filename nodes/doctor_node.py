"""Node: DraftAttention Doctor."""

from __future__ import annotations

from comfy_api.latest import io

from .apply import CATEGORY
from .words import told


class DraftAttentionDoctor(io.ComfyNode):
    """What this machine can run; see `draftattn_core.doctor.diagnose`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DraftAttentionDoctor",
            display_name="DraftAttention Doctor",
            category=CATEGORY,
            description=(
                "Checks what this machine can run: device, PyTorch, Triton, every backend on a small call against the "
                "exact reference, and what to install if something is missing. Installs nothing itself."
            ),
            search_aliases=["triton check", "draft attention doctor", "diagnose", "sparse attention not working"],
            inputs=[],
            outputs=[
                io.String.Output(display_name="text", tooltip="The findings in words."),
                io.Boolean.Output(display_name="works", tooltip="Whether a backend runs here and is right."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from ..draftattn_core.doctor.diagnose import diagnose

        diagnosis = diagnose()
        text = diagnosis.text()
        return io.NodeOutput(str(text), diagnosis.works, ui=told(text))
