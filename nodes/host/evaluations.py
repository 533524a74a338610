"""An evaluation as ComfyUI asks for it at APPLY_MODEL: the bare latent goes in, the denoised latent comes out."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...draftattn_core.run.evaluation import Branch, Denoised, Evaluation, Uncorrected
from .runs import Moment, Sampling

# What a model predicts, by the class of comfy.model_sampling that makes the denoised latent of it. Only these are known
# to do it by a sum of x and the prediction.
PREDICTIONS: Mapping[str, str] = {
    "CONST": "flow",
    "EPS": "eps",
    "V_PREDICTION": "v",
    "V_PREDICTION_DDPM": "v of unscaled x",
    "EDM": "edm",
    "X0": "x0",
    "COSMOS_RFLOW": "flow of scaled x",
    "LCM": "lcm",
}


# Where the host's frame-by-frame sampler keeps the keys and values of earlier frames.
CAUSAL = "ar_state"
# Where the host says that it computes this condition beside others, on a device of its own by a clone of the run's
# model.
SPLIT = "multigpu_thread_device"
# What every call says of its conditions; they name the branches already.
OF_CONDITIONS = ("cond_or_uncond", "uuids")


def evaluation_of(
    model: Any,
    sampling: Sampling,
    moment: Moment,
    x: Tensor,
    t: Tensor,
    options: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Evaluation:
    """What an APPLY_MODEL call asks for.

    Args:
        model: the host's BaseModel that is asked.
        x: (B, C, ...) latent, conditions stacked along B. t: (B,) sigmas.
        options: its transformer_options. args, kwargs: its other arguments.
    """
    # A model that writes keys and values as it goes must see every evaluation.
    prediction = "" if options.get(CAUSAL) is not None else prediction_of(model.model_sampling)
    kinds = list(options.get("cond_or_uncond") or ())
    trajectory = sampling.trajectory
    before = trajectory.steps_before()
    return Evaluation(
        step=moment.step,
        sampler_step=moment.sampler_step,
        steps=trajectory.steps,
        progress=moment.progress,
        level=moment.sigma,
        prediction=prediction,
        denoised=denoised_of(model.model_sampling, t, x) if prediction else None,
        branches=_branches(model, x, kinds, options, args, kwargs),
        conditional=_conditional(kinds, options, sampling.positive),
        window=_window(options.get("context_window")),
        # Clones are one expert, or every device would decide for its own condition which steps to skip.
        expert=id(model if options.get(SPLIT) is None else sampling.model),
        device=x.device,
        is_last=trajectory.ends_clean and moment.sampler_step >= trajectory.steps - 1,
        streams=_streams(kwargs.get("latent_shapes")),
        next_level=trajectory.next_level(moment.sigma),
        uncorrected=trajectory.uncorrected or Uncorrected.UNKNOWN,
        before=before,
        after=trajectory.whole_steps() - trajectory.steps - before,
    )


def prediction_of(sampling: Any) -> str:
    """What a model with this `model_sampling` predicts; "" if that is not known."""
    for cls in type(sampling).__mro__:
        if "calculate_denoised" in vars(cls):
            return PREDICTIONS.get(cls.__name__, "")
    return ""


def denoised_of(sampling: Any, t: Tensor, x: Tensor) -> Denoised:
    """The two factors of `calculate_denoised`, read off its answers for ones and zeros.

    Args:
        t: (B,) sigmas.
        x: (B, ...) latent.
    """
    shape = (t.shape[0], *(1,) * (x.dim() - 1))
    one, zero = torch.ones(shape, device=x.device), torch.zeros(shape, device=x.device)
    return Denoised(sampling.calculate_denoised(t, zero, one), sampling.calculate_denoised(t, one, zero))


def _branches(
    model: Any,
    x: Tensor,
    kinds: list[int],
    options: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[Branch, ...]:
    """One branch per condition; they share the batch of x evenly.

    Names alone do not tell them apart: against the condition of an area the host sets a copy that is named like it, and
    conditions of areas see parts of the latent.
    """
    uuids = [*(options.get("uuids") or ())]
    names: list[Hashable] = [*zip(uuids, kinds, strict=True)] if len(uuids) == len(kinds) else list(kinds)
    if not names:
        names = [None]
    size = x.shape[0] // len(names)
    control = args[2] if len(args) > 2 else kwargs.get("control")
    shared = (tuple(x.shape[1:]), _patches(options), _hooks(model), _control(control), _said(options), _given(kwargs))
    return tuple(Branch((name, *shared), slice(index * size, (index + 1) * size)) for index, name in enumerate(names))


def _conditional(kinds: list[int], options: Mapping[str, Any], positive: frozenset[Hashable]) -> int | None:
    """Which of the stacked conditions decides: the positive one, which guiders of three do not always put first."""
    names = list(options.get("uuids") or ())
    if positive and len(names) == len(kinds):
        return next((index for index, name in enumerate(names) if name in positive), None)
    return kinds.index(0) if 0 in kinds else None


def positive_conditions(guider: Any) -> frozenset[Hashable]:
    """Their names under a guider of three conditions or more; empty where positive and negative are all, since the host
    names the negative of an area like its positive."""
    conditions: Mapping[str, Any] = getattr(guider, "conds", None) or {}
    if len(conditions) < 3:
        return frozenset()
    return frozenset(found["uuid"] for found in conditions.get("positive") or () if "uuid" in found)


def _said(options: Mapping[str, Any]) -> Hashable:
    """Switches and lists among the options: guidance that asks for one condition again, with some attention left out
    (LTX's STG and modality guidance), says so there. Numbers may count steps and name no branch."""
    said: list[tuple[str, ...]] = []
    for name, value in options.items():
        if isinstance(value, bool):
            said.append((str(name), str(value)))
        elif isinstance(value, (list, tuple, set, frozenset)) and name not in OF_CONDITIONS and _plain(value):
            said.append((str(name), *sorted(map(str, value))))
    return tuple(sorted(said))


def _plain(values: Collection[Any]) -> bool:
    return all(isinstance(value, (bool, int, str)) for value in values)


def _given(kwargs: Mapping[str, Any]) -> Hashable:
    """What a condition brings along: guidance may ask for one again without its reference."""
    return tuple(sorted(name for name, value in kwargs.items() if value is not None))


def _patches(options: Mapping[str, Any]) -> Hashable:
    """What is patched into the blocks: guidance that skips layers evaluates one condition with and without a patch.

    A patch that is made anew for every evaluation has another id each time, so its branch never has a history.
    """
    found: list[tuple[str, ...] | tuple[str, str, int]] = []
    for name, patches in (options.get("patches") or {}).items():
        found += [("patch", str(name), id(patch)) for patch in patches]
    for name, places in (options.get("patches_replace") or {}).items():
        found += [(str(name), str(place), id(patch)) for place, patch in places.items()]
    return tuple(sorted(found, key=str))


def _control(control: Any) -> Hashable:
    """Where a control network adds to the model: a chain that loses a member may reach other places. Conditions that
    differ in its strength have names of their own; one that fades by itself is left to the measured error."""
    if not isinstance(control, Mapping):
        return control is not None
    places = ((str(name), tuple(some is not None for some in added)) for name, added in control.items() if added)
    return tuple(sorted(places))


def _hooks(model: Any) -> Hashable:
    """Hooks on the weights just now, with their strengths."""
    group = getattr(getattr(model, "current_patcher", None), "current_hooks", None)
    return tuple((id(hook), float(getattr(hook, "strength", 1.0))) for hook in getattr(group, "hooks", ()))


def _window(window: Any) -> Hashable:
    """Which part of the video a context window holds."""
    if window is None:
        return None
    indices = getattr(window, "index_list", None)
    if indices is None:
        return id(window)
    return (getattr(window, "dim", None), getattr(window, "causal_anchor_index", None), *indices)


def _streams(shapes: Any) -> tuple[int, ...]:
    """Lengths of the latents that the host has packed into one, (B, 1, sum of them)."""
    if shapes is None or len(shapes) < 2:
        return ()
    return tuple(math.prod(int(size) for size in shape[1:]) for shape in shapes)
