"""DraftAttention: sparse attention for video models, for ComfyUI, for diffusers and by itself.

ComfyUI calls :func:`comfy_entrypoint` once at start-up. Nothing is imported before a name is asked for, so the folder
can be imported without ComfyUI and, as long as no name is used, without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

    from .draftattn_core import Layout, Policy, Schedule, Settings, TokenGrid, attend, draft_attention, published
    from .draftattn_core.hosts.diffusers.apply import apply_draft_attention

__all__ = [
    "Layout",
    "Policy",
    "Schedule",
    "Settings",
    "TokenGrid",
    "apply_draft_attention",
    "attend",
    "comfy_entrypoint",
    "draft_attention",
    "published",
]

# Help pages: docs/NODE.md in it.
WEB_DIRECTORY = "web"


async def comfy_entrypoint() -> ComfyExtension:
    """Return the extension that lists the nodes of this pack."""
    from .nodes.extension import DraftAttentionExtension

    return DraftAttentionExtension()


def __getattr__(name: str) -> Any:
    """The public names, imported when first used; `apply_draft_attention` needs diffusers."""
    if name == "apply_draft_attention":
        from .draftattn_core.hosts.diffusers.apply import apply_draft_attention

        return apply_draft_attention
    if name in __all__:
        from . import draftattn_core

        return getattr(draftattn_core, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
