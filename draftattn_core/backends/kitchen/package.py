"""The package comfy-kitchen: optional, imported when first asked for; what is missing is a reason."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from ...phrase import LIST, Joined, Phrase, Text
from ..triton.trust import in_short

# What of `sol_attn` is used; older releases lack some of it.
_WANTED = ("scale", "sink_blocks", "sink_q", "key_bias", "topk_ratio", "tail", "block_len")


@functools.cache
def missing() -> Text | None:
    """Why comfy-kitchen's `sol_attn` cannot be called in this process, or None."""
    try:
        import comfy_kitchen
    except ModuleNotFoundError as error:
        if error.name == "comfy_kitchen":
            return Phrase(
                "kitchen_none", "comfy-kitchen is not installed (recent ComfyUI brings it: pip install comfy-kitchen)"
            )
        return _broken(error)
    except Exception as error:
        return _broken(error)
    found = getattr(comfy_kitchen, "sol_attn", None)
    if found is None or not hasattr(comfy_kitchen, "sol_attn_is_available"):
        return Phrase("kitchen_no_sol_attn", "this comfy-kitchen has no sol_attn: 0.2.40 has")
    lacking = [name for name in _WANTED if name not in inspect.signature(found).parameters]
    if not lacking:
        return None
    return Phrase(
        "kitchen_lacks",
        "sol_attn of this comfy-kitchen does not take {names}: 0.2.40 does",
        names=Joined(lacking, LIST),
    )


def _broken(error: Exception) -> Text:
    return Phrase("kitchen_broken", "comfy-kitchen is installed but broken: {error}", error=in_short(error))


def compiled_for(device: torch.device) -> bool:
    """Whether its compiled kernel runs on a device; elsewhere it has only its eager form."""
    import comfy_kitchen

    return bool(comfy_kitchen.sol_attn_is_available(device))


def sol_attn() -> Callable[..., Tensor]:
    """The function itself: `sol_attn(q, k, v, ...)` on (B, T, H, 128)."""
    import comfy_kitchen

    found: Callable[..., Tensor] = comfy_kitchen.sol_attn
    return found
