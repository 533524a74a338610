"""Node: DraftAttention Calibrate."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..draftattn_core.run.fingerprint import check_name
from ..draftattn_core.run.profile_file import profile_path
from .apply import CATEGORY
from .host.adapter import apply_draft_attention, serves_attention
from .host.recording import Recording, profiles_folder, with_recording
from .inputs.checks import calibrate_problems, judgement
from .inputs.presets import Choices

NO_MASKS = "off"
# As the widget shows them: tokens per block.
MASK_BLOCKS = {NO_MASKS: 0, "128": 128, "64": 64}


class DraftAttentionCalibrate(io.ComfyNode):
    """Has the runs of a model measured for a profile; see `host.recording`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DraftAttentionCalibrate",
            display_name="DraftAttention Calibrate",
            category=CATEGORY,
            description=(
                "Measures the model while it samples and adds every complete run to a profile in "
                "models/draft_attention. Put it between the model (or DraftAttention Sparse) and the sampler. Without "
                "DraftAttention Sparse the run stays dense."
            ),
            search_aliases=["draft attention profile", "calibrate sparse attention", "sparsity budgets"],
            inputs=[
                io.Model.Input("model", tooltip="A video model, with or without DraftAttention Sparse."),
                io.String.Input("name", default="my model", tooltip="Name of the profile; runs are added to it."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="The prompt of the run, so that prompts can be counted. A key of it is kept, not its "
                    "words. Empty = the run counts as no prompt.",
                ),
                io.String.Input(
                    "expert",
                    default="main",
                    advanced=True,
                    tooltip='Which of several models of one family this is: for Wan 2.2 "high" and "low", each with '
                    "a Calibrate node of its own and the same name.",
                ),
                io.Combo.Input(
                    "masks",
                    options=list(MASK_BLOCKS),
                    default=NO_MASKS,
                    optional=True,
                    advanced=True,
                    tooltip="Let dense runs vote for CalibAtt's masks, too (preset or method calibatt), in blocks of "
                    "so many tokens; published: 128. They hold for this size of video and this many steps and may take "
                    "gigabytes. Every step is measured, so the run takes several times as long. Use as many prompts as "
                    "you can, 16 or more.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model, observed.")],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None, expert: str | None = None) -> bool | str:
        return judgement(calibrate_problems(name, expert))

    @classmethod
    def execute(
        cls, model: Any, name: str, prompt: str = "", expert: str = "main", masks: str = NO_MASKS
    ) -> io.NodeOutput:
        path, block = profile_path(profiles_folder(), name.strip()), MASK_BLOCKS[masks]
        recording = Recording(path, check_name("expert", expert), prompt, block)
        if not serves_attention(model):
            model, _ = apply_draft_attention(model, Choices(preset="custom", sparsity=0.0))
        return io.NodeOutput(with_recording(model, recording))
