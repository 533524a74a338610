"""raylight: sequence parallelism over Ray workers, which puts attention of its own into a model's modules.

It sets `forward`, in Cosmos `attn_op`, on the modules themselves when the model is loaded, so no patch of the host
tells of it, and its attention never asks for the host's: whoever hooks that is left out without a word.
"""

from __future__ import annotations

from typing import Any

from ..words import Words

_REPLACED = ("forward", "attn_op")


def attention_of_raylight(network: Any) -> tuple[str, ...]:
    """Names of the network's modules whose `forward` or attention raylight has replaced."""
    return tuple(
        Words("bypass_raylight", name=name or Words("bypass_model"))
        for name, module in network.named_modules()
        if any(_from_raylight(vars(module).get(replaced)) for replaced in _REPLACED)
    )


def _from_raylight(function: Any) -> bool:
    return "raylight" in str(getattr(function, "__module__", "")).split(".")
