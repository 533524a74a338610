"""Attention overrides in a chain: ours decides first, everything it declines goes to the override that was there.

ComfyUI knows one `optimized_attention_override` per model. A node placed after ours may overwrite it (Sage patches do)
or keep ours as its own previous one; so the chain is laid anew at the start of every run, with ours outermost.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

OVERRIDE = "optimized_attention_override"

Override = Callable[..., torch.Tensor]
Serve = Callable[..., torch.Tensor]

_PREVIOUS = "draft_attention_previous"


def is_ours(override: object) -> bool:
    """Whether an override was made by `link`."""
    return hasattr(override, _PREVIOUS)


def link(serve: Serve, previous: Override | None) -> Override:
    """An override that hands each call to `serve(dense, q, k, v, heads, ...)`, where dense() is the rest of the chain.

    Args:
        serve: answers the call; gets the call's own arguments after `dense`.
        previous: the override that was on the model, or None for the host's own attention.
    """

    def override(func: Override, *args: Any, **kwargs: Any) -> torch.Tensor:
        def dense() -> torch.Tensor:
            if previous is not None:
                return previous(func, *args, **kwargs)
            return func(*args, **kwargs)

        return serve(dense, *args, **kwargs)

    # Tracing the routing would bake one call's decisions into a compiled graph. Only where Dynamo is in use already:
    # importing it takes seconds.
    disable: Callable[[Override], Override] = torch.compiler.disable
    wrapped = disable(override) if "torch._dynamo" in sys.modules else override
    setattr(wrapped, _PREVIOUS, previous)
    return wrapped


def install(transformer_options: dict[str, Any], serve: Serve) -> Override | None:
    """Put `serve` at the head of the chain in `transformer_options`; an earlier link of ours at the head is replaced.

    Returns:
        What was in the dictionary before, to put back with `restore`.
    """
    found: Override | None = transformer_options.get(OVERRIDE)
    previous = getattr(found, _PREVIOUS) if is_ours(found) else found
    transformer_options[OVERRIDE] = link(serve, previous)
    return found


def restore(transformer_options: dict[str, Any], found: Override | None) -> None:
    """Undo `install`."""
    if found is None:
        transformer_options.pop(OVERRIDE, None)
    else:
        transformer_options[OVERRIDE] = found
