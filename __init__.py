"""DraftAttention for ComfyUI.

ComfyUI calls :func:`comfy_entrypoint` once at start-up. Nothing is imported before that call, so the folder can be
imported without ComfyUI too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

# Help pages: docs/NODE.md in it.
WEB_DIRECTORY = "web"


async def comfy_entrypoint() -> ComfyExtension:
    """Return the extension that lists the nodes of this pack."""
    from .nodes.extension import DraftAttentionExtension

    return DraftAttentionExtension()
