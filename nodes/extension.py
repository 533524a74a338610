"""The list of nodes ComfyUI loads."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .apply import ApplyDraftAttention
from .demo_prompt import DraftAttentionDemoPrompt


class DraftAttentionExtension(ComfyExtension):
    """The nodes of this pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [ApplyDraftAttention, DraftAttentionDemoPrompt]
