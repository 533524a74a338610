"""Node for development: conditioning of the tiny demo model, which has no text encoder."""

from __future__ import annotations

from comfy_api.latest import io

from .apply import CATEGORY
from .demo_prompts import PROMPTS, prompt_embedding


class DraftAttentionDemoPrompt(io.ComfyNode):
    """A prompt of the demo model as conditioning."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DraftAttentionDemoPrompt",
            display_name="DraftAttention Demo Prompt",
            category=CATEGORY,
            description="Conditioning for the tiny demo model of this pack; of no use with any other model.",
            inputs=[
                io.Combo.Input(
                    "prompt",
                    options=[*PROMPTS, "none"],
                    default=PROMPTS[-1],
                    tooltip="What the video shows; none is the empty prompt, for the negative side.",
                )
            ],
            outputs=[io.Conditioning.Output(tooltip="For the demo model alone.")],
            is_dev_only=True,
        )

    @classmethod
    def execute(cls, prompt: str) -> io.NodeOutput:
        embedding = prompt_embedding("" if prompt == "none" else prompt)
        return io.NodeOutput([[embedding, {"pooled_output": None}]])
