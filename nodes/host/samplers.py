"""What ComfyUI's samplers do with a model's output, as far as a run must know it."""

from __future__ import annotations

from typing import Any

# The host's own function; its noise is added only where a node sets s_churn.
_EULER = "sample_euler"


def takes_euler_steps(sampler: Any) -> bool:
    """Whether a sampler goes from one noise level to the next by x + d (sigma' - sigma) and remembers nothing.

    Args:
        sampler: the host's `comfy.samplers.Sampler`.
    """
    function = getattr(sampler, "sampler_function", None)
    if getattr(function, "__name__", "") != _EULER or not getattr(function, "__module__", "").startswith("comfy."):
        return False
    return not (getattr(sampler, "extra_options", None) or {}).get("s_churn")
