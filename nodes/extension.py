"""The list of nodes ComfyUI loads."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .apply import ApplyDraftAttention
from .browser.routes import add_routes
from .browser.server import instance
from .calibrate import DraftAttentionCalibrate
from .compare import DraftAttentionCompare
from .demo_prompt import DraftAttentionDemoPrompt
from .doctor_node import DraftAttentionDoctor
from .preview import DraftAttentionCapture, DraftAttentionPreview
from .profile import DraftAttentionProfile
from .report_node import DraftAttentionReport
from .scheduler import SparsityScheduler
from .skip_steps import DraftAttentionSkipSteps


class DraftAttentionExtension(ComfyExtension):
    """The nodes of this pack."""

    async def on_load(self) -> None:
        server = instance()
        if server is not None:
            add_routes(server.routes)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            ApplyDraftAttention,
            SparsityScheduler,
            DraftAttentionSkipSteps,
            DraftAttentionReport,
            DraftAttentionCapture,
            DraftAttentionPreview,
            DraftAttentionCompare,
            DraftAttentionDoctor,
            DraftAttentionProfile,
            DraftAttentionCalibrate,
            DraftAttentionDemoPrompt,
        ]
