"""The bridge to ComfyUI: from the host's model and attention calls to the core's run, and back.

Four hooks share one `Adapter`: an OUTER_SAMPLE wrapper opens and closes a run and lays the chain of overrides, an
APPLY_MODEL wrapper evaluates the model through the run, a DIFFUSION_MODEL wrapper (APPLY_MODEL for models without one)
works out what the coming attention calls look like, and the override serves each of them. What one model call needs
travels inside its own `transformer_options`, so threads, context windows and split conditions cannot get into each
other's way.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...draftattn_core.run.evaluation import Evaluation
from ...draftattn_core.run.report import DenseReason, RunReport
from ...draftattn_core.run.run import Run
from ...draftattn_core.run.settings import Settings
from ...draftattn_core.run.step_cache import StepCacheSettings
from ..inputs.presets import Choices
from ..words import Words
from . import chain, skipping
from .calls import HostCall, classify
from .evaluations import evaluation_of, positive_conditions
from .layouts import NoLayout, Tokens, describe
from .memory import unrecorded
from .raylight import attention_of_raylight
from .recording import keep_recording, model_name, recording_of
from .runs import ModelCall, Moment, ReportHandle, Sampling, Trajectory
from .samplers import why_not_corrected
from .status import show_status
from .strict import refuse_surprises

log = logging.getLogger(__name__)

KEY = "draft_attention"
ADAPTER = "draft_attention_adapter"
WRAPPERS = ("outer_sample", "apply_model", "diffusion_model")
# Where a node may put an attention of its own; cross-attention (NAG patches it) is none of our business.
ATTENTION_FORWARD = re.compile(
    r"^diffusion_model\.(?!.*(cross|attn2|refiner)).*(attn|attention)[^.]*(\.(forward|compute_attention))?$"
)


@dataclass
class Adapter:
    """State behind one patched model.

    Attributes:
        choices: what the user chose for attention; None to leave it alone, where only steps are skipped.
        handle: what other nodes see of its runs.
        followers: handles of Skip Steps nodes further up, which follow its runs too.
        tell_node: puts text under the node in the browser; None where there is no browser.
        sampling: the run under way, None between runs.
    """

    choices: Choices | None
    handle: ReportHandle = field(default_factory=ReportHandle)
    followers: tuple[ReportHandle, ...] = ()
    tell_node: Callable[[str], None] | None = None
    sampling: Sampling | None = None

    def outer_sample(
        self, executor: Any, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """OUTER_SAMPLE wrapper.

        Raises:
            ValueError: before sampling starts, if a choice is out of range or `strict` finds a reason for dense calls.
        """
        guider = executor.class_obj
        mask = args[0] if args else kwargs.get("denoise_mask")
        opened = self._open(guider, noise, sampler, sigmas, kwargs.get("latent_shapes"), mask)
        options = guider.model_options.setdefault("transformer_options", {})
        outer, found = self.sampling, None if self.choices is None else chain.install(options, self.serve)
        self.sampling = opened
        forget = show_status(self.handle.events, self.tell_node)
        cancelled = True
        try:
            if opened is not None:
                opened.run.start(opened.trajectory.steps, opened.trajectory.progress(opened.trajectory.schedule[0]))
            result = executor(noise, latent, sampler, sigmas, *args, **kwargs)
            cancelled = False
            return result
        finally:
            self.sampling = outer
            if self.choices is not None:
                chain.restore(options, found)
            if opened is not None:
                # raylight takes a model over when it is loaded, which is after the run was opened.
                opened.bypassed = opened.bypassed or attention_of_raylight(guider.model_patcher.model.diffusion_model)
                opened.finish(cancelled)
                keep_recording(opened.run, None if cancelled else recording_of(guider.model_options))
            forget()

    def _open(
        self, guider: Any, noise: Tensor, sampler: Any, sigmas: Tensor, shapes: Any, mask: Any
    ) -> Sampling | None:
        """A run, or None if this host is not what we know: sampling then goes on without us."""
        patcher = guider.model_patcher
        try:
            sampling = patcher.get_model_object("model_sampling")
            schedule = tuple(float(sigma) for sigma in sigmas)
            trajectory = Trajectory(sampling.percent_to_sigma, schedule, why_not_corrected(sampler, guider, mask))
            steps = trajectory.whole_steps()
            tokens = _expected(patcher.model.diffusion_model, tuple(shapes[0]) if shapes else tuple(noise.shape))
            bypassed = tuple(name for name in patcher.object_patches if ATTENTION_FORWARD.search(name))
            bypassed += attention_of_raylight(patcher.model.diffusion_model)
        except Exception:
            log.exception("DraftAttention does not understand this run and leaves it dense")
            self._show(None, RunReport(notes=[Words("run_not_understood")]))
            return None
        settings = Settings()
        if self.choices is not None:
            settings = self.choices.settings(steps, tokens.grid.tokens if isinstance(tokens, Tokens) else 0)
        by_node = skipping.chosen(guider.model_options.get("transformer_options") or {})
        asked = by_node or settings.skip
        if self.choices is not None and self.choices.strict:
            other = skipping.rival(asked, trajectory.steps, guider.model_options, patcher)
            refuse_surprises(tokens, settings, bypassed, patcher, other, by_node is None)
        skip, why_not = skipping.settle(asked, trajectory.steps, guider.model_options, patcher)
        recording = recording_of(guider.model_options)
        by_speed, settings = settings.skip, replace(settings, skip=skip)
        if recording is not None:
            settings = recording.settings(settings)
        run = Run(settings, self.handle.events, model=model_name(patcher, settings, recording))
        if by_node is not None and self.choices is not None and by_speed.rule != "off":
            run.telling.note(Words("skip_over_speed", speed=self.choices.speed))
        if why_not is not None:
            run.telling.note(Words("skip_note", why=why_not))
            log.info("DraftAttention %s", why_not)
        if self.handle.new_step_cache is not None:
            run.step_cache = self.handle.new_step_cache()
        self._show(run, run.report)
        return Sampling(run, trajectory, patcher.model, bypassed, self.choices is not None, positive_conditions(guider))

    def _show(self, run: Run | None, report: RunReport) -> None:
        """What is shown of the model's runs is this one from now on."""
        for handle in (self.handle, *self.followers):
            handle.report = report
            if run is not None:
                handle.run = run

    def apply_model(self, executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Any:
        """APPLY_MODEL wrapper: evaluates the model through the run, and describes models without a DIFFUSION_MODEL
        wrapper; others overrule it there."""
        sampling, options = self.sampling, _find_options(args, kwargs)
        if sampling is None or options is None:
            return executor(x, t, *args, **kwargs)
        network = executor.class_obj.diffusion_model
        network = getattr(network, "_orig_mod", network)  # a compiled module around it
        context = args[1] if len(args) > 1 else kwargs.get("c_crossattn")
        moment: Moment | None = None
        evaluation: Evaluation | None = None
        try:
            moment = sampling.moment(options)
            evaluation = evaluation_of(executor.class_obj, sampling, moment, x, t, options, args, kwargs)
        except Exception as error:
            sampling.run.failures.raised(error)

        def model(latent: Tensor) -> Tensor:
            if self.choices is None:
                return executor(latent, t, *args, **kwargs)  # type: ignore[no-any-return]
            arguments = {**kwargs, "x": latent, "context": context, "transformer_options": options}
            with self._model_call(network, lambda: arguments, options, moment):
                denoised: Tensor = executor(latent, t, *args, **kwargs)
                return denoised

        if evaluation is None:
            sampling.run.count_computed(0 if moment is None else moment.step)
            return model(x)
        return sampling.run.evaluate(model, x, evaluation)

    def diffusion_model(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """DIFFUSION_MODEL wrapper."""
        options = _find_options(args, kwargs)
        if self.sampling is None or options is None:
            return executor(*args, **kwargs)
        with self._model_call(executor.class_obj, lambda: _by_name(executor.original, args, kwargs), options):
            return executor(*args, **kwargs)

    @contextmanager
    def _model_call(
        self,
        network: Any,
        arguments: Callable[[], Mapping[str, Any]],
        options: dict[str, Any],
        moment: Moment | None = None,
    ) -> Iterator[None]:
        """Put what the coming attention calls need into their transformer_options."""
        found = {key: options.get(key) for key in (KEY, "patches")}
        if self.sampling is not None:
            try:
                self._prepare(self.sampling, network, arguments(), options, moment)
            except Exception as error:
                self.sampling.run.failures.raised(error)
        try:
            yield
        finally:
            self._say_why_not(options.get(KEY))
            for key, value in found.items():
                if value is None:
                    options.pop(key, None)
                else:
                    options[key] = value

    def _say_why_not(self, call: ModelCall | None) -> None:
        """Keep the reason of a model call that has no layout, also where none of its attention reached us."""
        if self.sampling is None or call is None or call.overruled or not isinstance(call.tokens, NoLayout):
            return
        if call.tokens.candidate is None:
            self.sampling.explain(call.tokens.reason, call.tokens.message)

    @staticmethod
    def _prepare(
        sampling: Sampling, network: Any, arguments: Mapping[str, Any], options: dict[str, Any], moment: Moment | None
    ) -> None:
        try:
            tokens = describe(network, arguments)
        except Exception as error:
            tokens = NoLayout(DenseReason.UNKNOWN_GRID, Words("layout_failed", error=repr(error)))
        call = sampling.model_call(network, tokens, arguments, options, options.get(KEY), moment)
        options[KEY] = call
        if isinstance(tokens, NoLayout) and tokens.candidate is not None:
            options["patches"] = _with_listener(options.get("patches") or {}, call)

    def serve(
        self, dense: Callable[[], Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Answer one attention call of the host; `dense` is the rest of the chain."""
        options = kwargs.get("transformer_options") or {}
        model: ModelCall | None = options.get(KEY)
        sampling = self.sampling
        if sampling is None or (model is not None and model.served):
            return dense()
        if model is None:
            return sampling.run.calls.dense(dense, DenseReason.UNKNOWN_GRID)
        model.served = True
        try:
            with unrecorded() as record_again:

                def recorded() -> Tensor:
                    record_again()
                    return dense()

                return self._serve(sampling, model, recorded, HostCall(q, k, v, heads, args, kwargs), options)
        finally:
            model.served = False

    def _serve(
        self,
        sampling: Sampling,
        model: ModelCall,
        dense: Callable[[], Tensor],
        call: HostCall,
        options: Mapping[str, Any],
    ) -> Tensor:
        run, failure = sampling.run, None
        try:
            place = classify(model, call, options)
            q, k, v = call.to_core()
        except Exception as error:
            failure = DenseReason.STOOD_ASIDE if run.failures.stood_aside else DenseReason.ERROR
            run.failures.raised(error)
        if failure is not None:
            return run.calls.dense(dense, failure)
        if place.reason is not None or place.tokens is None or place.position is None:
            reason = place.reason or DenseReason.ERROR
            if place.explanation:
                sampling.explain(reason, place.explanation)
            return run.calls.dense(dense, reason, place.position, q, k.shape[2])
        self.handle.grid = place.tokens.grid.as_tuple()
        return run.calls.attention(
            q,
            k,
            v,
            grid=place.tokens.grid,
            extra_before=place.tokens.before,
            extra_after=place.tokens.after,
            position=place.position,
            dense=dense,
            key_bias=place.bias,
            from_core=call.from_core,
        )


def _with_listener(patches: Mapping[str, Any], call: ModelCall) -> dict[str, Any]:
    """The patches of a model call and one of ours, which keeps where the host says the image begins and ends."""

    def listen(*_: Any, extra_options: Mapping[str, Any] | None = None, **__: Any) -> dict[str, Any]:
        start_end = (extra_options or {}).get("img_slice")
        call.image = None if start_end is None else (int(start_end[0]), int(start_end[1]))
        return {}

    return {**patches, "attn1_patch": [*patches.get("attn1_patch", ()), listen]}


def _expected(network: Any, shape: tuple[int, ...]) -> Tokens | NoLayout | None:
    """Layout to expect for a latent of this shape, its text left out; None if only the model calls can tell."""
    try:
        return describe(network, {"x": torch.empty(shape, device="meta"), "context": torch.empty(1, 0, 1)})
    except Exception:  # an unusual latent: what a model call brings along is not known yet
        return None


def _find_options(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The transformer_options among the arguments of a model call."""
    options = kwargs.get("transformer_options")
    if isinstance(options, dict):
        return options
    return next((value for value in args if isinstance(value, dict) and "sigmas" in value), None)


def _by_name(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call by their parameter names, extra keyword arguments included."""
    bound = inspect.signature(function).bind(*args, **kwargs)
    arguments = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(name, {}))
    return arguments


def apply_draft_attention(
    model: Any, choices: Choices, tell_node: Callable[[str], None] | None = None
) -> tuple[Any, ReportHandle]:
    """A clone of `model` (ComfyUI's ModelPatcher) whose video self-attention is sparse, and the handle of its reports.

    Applied to a model that has it already, the new choices replace the old ones.

    Raises:
        ValueError: if a choice is out of range.
    """
    choices.settings(steps=20, tokens=0)
    patched, adapter = _wrapped(model.clone(), Adapter(choices, tell_node=tell_node))
    chain.install(_own_options(patched), _closure(adapter.serve))
    return patched, adapter.handle


def serves_attention(model: Any) -> bool:
    """Whether a model's attention goes through an adapter, which it does not where only steps are skipped."""
    return KEY in model.wrappers.get("diffusion_model", {})


def apply_skip_steps(
    model: Any, settings: StepCacheSettings, tell_node: Callable[[str], None] | None = None
) -> tuple[Any, ReportHandle]:
    """A clone of `model` whose sampling runs skip steps, with or without draft attention, before or after it, and the
    handle of its reports.

    Applied to a model that skips steps already, the new settings replace the old ones; a model whose attention is
    sparse keeps its adapter, which tells its own node, and its handle is the one returned.
    """
    patched = model.clone()
    adapter = _adapter_of(patched)
    if adapter is None or adapter.choices is None:
        patched, adapter = _wrapped(patched, Adapter(None, tell_node=tell_node))
    _own_options(patched)[skipping.SKIP] = settings
    return patched, adapter.handle


def _wrapped(patched: Any, adapter: Adapter) -> tuple[Any, Adapter]:
    """The model with an adapter's wrappers in place of those of an earlier one."""
    earlier = _adapter_of(patched)
    if earlier is not None:
        own = () if earlier.choices is not None else (earlier.handle,)
        adapter.followers = (*own, *earlier.followers)
    for kind in WRAPPERS:
        patched.remove_wrappers_with_key(kind, KEY)
        # Where attention is left alone nobody asks what its calls look like.
        if adapter.choices is not None or kind != "diffusion_model":
            wrapper = _closure(getattr(adapter, kind))
            setattr(wrapper, ADAPTER, adapter)
            patched.add_wrapper_with_key(kind, KEY, wrapper)
    return patched, adapter


def _adapter_of(patched: Any) -> Adapter | None:
    """The adapter whose wrappers a model has."""
    found = next(iter(patched.wrappers.get("outer_sample", {}).get(KEY, ())), None)
    return getattr(found, ADAPTER, None)


def _own_options(patched: Any) -> dict[str, Any]:
    """The transformer_options of a clone, which no other clone shares."""
    options: dict[str, Any] = dict(patched.model_options.get("transformer_options", {}))
    patched.model_options["transformer_options"] = options
    return options


def _closure(method: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function around a bound method: hosts that deep-copy model options would copy the method's object."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return call
