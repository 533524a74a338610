"""What ComfyUI's samplers and their guidance do with a model's output, as far as a run must know it."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor

_SAMPLING = "comfy.k_diffusion.sampling"
# Guiders of the host that are sums of what the model says for each condition, by module and class.
_GUIDERS = frozenset(
    {
        "comfy/samplers:CFGGuider",
        "comfy_extras/nodes_custom_sampler:Guider_Basic",
        "comfy_extras/nodes_custom_sampler:Guider_DualCFG",
        "comfy_extras/nodes_custom_sampler:Guider_DualModel",
        "comfy_extras/nodes_lt:Guider_LTXAVDualCFG",
    }
)
# Nodes of the host whose guidance is a sum, or was measured to pass a correction on. CFG-Zero*, CFG norm and adaptive
# projected guidance are not among them: they scale, cut or remember what they are given, and a corrected run ends two
# to five times as far from the run without skipping as one that is not corrected.
_GUIDANCE = frozenset(
    {
        "comfy_extras/nodes_model_advanced:RescaleCFG",
        "comfy_extras/nodes_video_model:VideoLinearCFGGuidance",
        "comfy_extras/nodes_video_model:VideoTriangleCFGGuidance",
        "comfy_extras/nodes_slg:SkipLayerGuidanceDiT",
    }
)
_FUNCTIONS = (
    "sampler_cfg_function",
    "sampler_pre_cfg_function",
    "sampler_post_cfg_function",
    "sampler_calc_cond_batch_function",
    "model_function_wrapper",
    # A mask that changes along the run lets in what was kept out when it was forecast.
    "denoise_mask_function",
)
_WRAPPERS = ("sampler_sample", "predict_noise", "calc_cond_batch")
# Where a mask lies between 0 and 1, the latent is drawn to the kept one and forgets what it was off by, so a correction
# overshoots. The seam of a mask that was resized is little of it.
_MOST_SOFT = 0.1


def takes_euler_steps(sampler: Any, guider: Any, mask: Any = None) -> bool:
    """Whether a run goes from one noise level to the next by x + d (sigma' - sigma), where d is a sum of what the model
    says for each condition and nothing is remembered: what is added to the model's output then moves the latent alone.

    Args:
        sampler: the host's `comfy.samplers.Sampler`.
        guider: the host's `CFGGuider`.
        mask: what of the latent is denoised, 1, and what is kept, 0; None for all of it.
    """
    function = getattr(sampler, "sampler_function", None)
    if function is None or function is not getattr(sys.modules.get(_SAMPLING), "sample_euler", None):
        return False
    if (getattr(sampler, "extra_options", None) or {}).get("s_churn"):
        return False
    if mask is not None and not _is_hard(mask):
        return False
    return _is_one_of(type(guider), _GUIDERS) and all(map(_known, _between(guider)))


def _is_hard(mask: Any) -> bool:
    """Whether a mask keeps or denoises nearly every place, and mixes hardly any. Waits for its device."""
    return isinstance(mask, Tensor) and float(((mask > 0.01) & (mask < 0.99)).float().mean()) <= _MOST_SOFT


def _between(guider: Any) -> Iterator[Any]:
    """Functions of other nodes between the model and the sampler."""
    for name in _FUNCTIONS:
        found = guider.model_options.get(name)
        yield from found if isinstance(found, list) else () if found is None else (found,)
    options = guider.model_options.get("transformer_options") or {}
    for wrappers in (options.get("wrappers") or {}, getattr(guider.model_patcher, "wrappers", {})):
        yield from _functions(wrappers)


def _functions(wrappers: Mapping[str, Mapping[Any, list[Any]]]) -> Iterator[Any]:
    for kind in _WRAPPERS:
        for functions in (wrappers.get(kind) or {}).values():
            yield from functions


def _known(function: Any) -> bool:
    """Whether a function is of the host's core, or of one of its nodes that pass a correction on."""
    return str(getattr(function, "__module__", "")).startswith("comfy.") or _is_one_of(function, _GUIDANCE)


def _is_one_of(thing: Any, names: Collection[str]) -> bool:
    """Whether a class, or a function of a class's method, is named there.

    The host names its core by module and its extra nodes by the path of their file.
    """
    place = re.sub(r"[./\\]+", "/", str(getattr(thing, "__module__", "")))
    named = f"{place}:{getattr(thing, '__qualname__', '')}"
    return any(re.search(rf"(^|/){name}($|\.)", named) for name in names)
