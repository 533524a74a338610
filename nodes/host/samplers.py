"""What ComfyUI's samplers and their guidance do with a model's output, as far as a run must know it."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor

from ...draftattn_core.run.evaluation import Uncorrected

_SAMPLING = "comfy.k_diffusion.sampling"
_SAMPLERS = "comfy.samplers"
# What of a guider stands between a sampler and the model. A guider that leaves these as the host's `CFGGuider` has them
# is a sum of what the model says for each condition, whatever it is called.
_PATH = ("__call__", "outer_predict_noise", "predict_noise", "inner_sample", "outer_sample", "sample")
# What they call, by name, in the same module.
_SUMS = ("sampling_function", "cfg_function", "calc_cond_batch")
# Guiders of the host that are such sums by code of their own, by module and class. One that is not found here, for a
# host may rename it, is not corrected and the report says so.
_GUIDERS = frozenset(
    {
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
# Samplers of the host that take a source of noise and leave it alone.
_QUIET = ("sample_res_multistep", "sample_res_multistep_cfg_pp")
# A mask that changes along the run lets in what was kept out when it was forecast.
_MASKING = "denoise_mask_function"
_FUNCTIONS = (
    "sampler_cfg_function",
    "sampler_pre_cfg_function",
    "sampler_post_cfg_function",
    "sampler_calc_cond_batch_function",
    "model_function_wrapper",
    _MASKING,
)
_WRAPPERS = ("sampler_sample", "predict_noise", "calc_cond_batch")
# Where a mask lies between 0 and 1, the latent is drawn to the kept one and forgets what it was off by, so a correction
# overshoots. The seam of a mask that was resized is little of it.
_MOST_SOFT = 0.1


def why_not_corrected(sampler: Any, guider: Any, mask: Any = None) -> Uncorrected | None:
    """None if a run goes from one noise level to the next by x + d (sigma' - sigma), where d is a sum of what the model
    says for each condition and nothing is remembered: what is added to the model's output then moves the latent alone.
    Else, or where that is not known, what stands against it.

    Args:
        sampler: the host's `comfy.samplers.Sampler`.
        guider: the host's `CFGGuider`.
        mask: what of the latent is denoised, 1, and what is kept, 0; None for all of it.
    """
    function = getattr(sampler, "sampler_function", None)
    if function is None or function is not getattr(sys.modules.get(_SAMPLING), "sample_euler", None):
        return Uncorrected.NOISE if _adds_noise(sampler) else Uncorrected.STEPS
    if (getattr(sampler, "extra_options", None) or {}).get("s_churn"):
        return Uncorrected.NOISE
    if mask is not None and not _is_hard(mask):
        return Uncorrected.MASK
    if not _is_sum(guider):
        return Uncorrected.GUIDER
    return next((why for why, function in _between(guider) if not _known(function)), None)


def _adds_noise(sampler: Any) -> bool:
    """Whether a sampler asks for a source of noise and does not multiply it by zero."""
    function = getattr(sampler, "sampler_function", None)
    try:
        taken = inspect.signature(function).parameters  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    if "noise_sampler" not in taken or getattr(function, "__name__", "") in _QUIET:
        return False
    options = getattr(sampler, "extra_options", None) or {}
    return all(options.get(name, taken[name].default) != 0 for name in ("eta", "s_noise") if name in taken)


def _is_sum(guider: Any) -> bool:
    """Whether all that stands between a sampler and the model is the host's own code and a sum."""
    host = sys.modules.get(_SAMPLERS)
    base = getattr(host, "CFGGuider", None)
    if host is None or base is None or not isinstance(guider, base):
        return False
    for name in _PATH:
        owner = next((cls for cls in type(guider).__mro__ if name in vars(cls)), None)
        if owner is None or name in vars(guider) or not (owner is base or _is_one_of(owner, _GUIDERS)):
            return False
        if not _made_in(vars(owner)[name], owner.__module__):
            return False
    return all(_made_in(getattr(host, name, None), _SAMPLERS) for name in _SUMS)


def _made_in(function: Any, module: str) -> bool:
    """Whether a function was defined there. Another node's that takes its place may copy its names, not its globals."""
    return getattr(function, "__globals__", {}).get("__name__") == module


def _is_hard(mask: Any) -> bool:
    """Whether a mask keeps or denoises nearly every place, and mixes hardly any. Waits for its device."""
    return isinstance(mask, Tensor) and float(((mask > 0.01) & (mask < 0.99)).float().mean()) <= _MOST_SOFT


def _between(guider: Any) -> Iterator[tuple[Uncorrected, Any]]:
    """Functions of other nodes between the model and the sampler, and what each is."""
    for name in _FUNCTIONS:
        found = guider.model_options.get(name)
        for function in found if isinstance(found, list) else () if found is None else (found,):
            yield Uncorrected.MASK if name == _MASKING else Uncorrected.GUIDANCE, function
    options = guider.model_options.get("transformer_options") or {}
    for wrappers in (options.get("wrappers") or {}, getattr(guider.model_patcher, "wrappers", {})):
        yield from ((Uncorrected.WRAPPER, function) for function in _functions(wrappers))


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
