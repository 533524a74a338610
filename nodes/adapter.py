"""The bridge to ComfyUI: from the host's attention calls to the core's session, and back.

Three hooks share one `Adapter`: an OUTER_SAMPLE wrapper opens and closes a run and lays the chain of overrides, a
DIFFUSION_MODEL wrapper (APPLY_MODEL for models without one) works out what the coming attention calls look like, and
the override serves each of them. What one model call needs travels inside its own `transformer_options`, so threads,
context windows and split conditions cannot get into each other's way.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..draftattn_core.report import DenseReason
from ..draftattn_core.session import Session
from . import chain
from .layouts import NoLayout, Tokens, describe, layer_of
from .presets import Choices
from .runs import ModelCall, ReportHandle, Run, Trajectory

log = logging.getLogger(__name__)

KEY = "draft_attention"
WRAPPERS = ("outer_sample", "apply_model", "diffusion_model")
ATTENTION_FORWARD = re.compile(r"diffusion_model\..*attn[^.]*(\.forward)?$")


@dataclass
class Adapter:
    """State behind one patched model: the choices, and the run while there is one."""

    choices: Choices
    handle: ReportHandle = field(default_factory=ReportHandle)
    tell_node: Callable[[str], None] | None = None
    run: Run | None = None

    # Runs

    def outer_sample(
        self, executor: Any, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """OUTER_SAMPLE wrapper."""
        guider = executor.class_obj
        options = guider.model_options.setdefault("transformer_options", {})
        outer, found = self.run, chain.install(options, self.serve)
        try:
            self.run = self._open(guider, noise, sigmas)
            try:
                return executor(noise, latent, sampler, sigmas, *args, **kwargs)
            finally:
                self.run.finish()
        finally:
            self.run = outer
            chain.restore(options, found)

    def _open(self, guider: Any, noise: Tensor, sigmas: Tensor) -> Run:
        patcher = guider.model_patcher
        sampling = patcher.get_model_object("model_sampling")
        trajectory = Trajectory(sampling.percent_to_sigma, tuple(float(sigma) for sigma in sigmas))
        network = patcher.model.diffusion_model
        try:
            tokens = describe(network, {"x": noise, "context": None})
        except Exception:  # what a model call brings along is not known yet
            tokens = None
        count = tokens.grid.tokens if isinstance(tokens, Tokens) else 0
        session = Session(self.choices.settings(trajectory.whole_steps(), count))
        session.on_call = self.handle.tell if self.handle.listeners else None
        session.start_run()
        self.handle.session, self.handle.report = session, session.report
        bypassed = tuple(name for name in patcher.object_patches if ATTENTION_FORWARD.search(name))
        return Run(session, trajectory, bypassed, self.tell_node)

    # Model calls

    def apply_model(self, executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Any:
        """APPLY_MODEL wrapper: serves models that have no DIFFUSION_MODEL wrapper; others overrule it there."""
        options = _find_options(args, kwargs)
        if self.run is None or options is None:
            return executor(x, t, *args, **kwargs)
        network = executor.class_obj.diffusion_model
        arguments = {**kwargs, "x": x, "context": args[1] if len(args) > 1 else kwargs.get("c_crossattn")}
        with self._model_call(network, arguments, options):
            return executor(x, t, *args, **kwargs)

    def diffusion_model(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """DIFFUSION_MODEL wrapper."""
        options = _find_options(args, kwargs)
        if self.run is None or options is None:
            return executor(*args, **kwargs)
        with self._model_call(executor.class_obj, _by_name(executor.original, args, kwargs), options):
            return executor(*args, **kwargs)

    @contextmanager
    def _model_call(self, network: Any, arguments: Mapping[str, Any], options: dict[str, Any]) -> Iterator[None]:
        assert self.run is not None
        before = options.get(KEY)
        try:
            try:
                tokens = describe(network, arguments)
            except Exception as error:
                tokens = NoLayout(DenseReason.UNKNOWN_GRID, f"the token grid could not be derived: {error!r}")
            options[KEY] = self.run.model_call(network, tokens, arguments, options)
            yield
        finally:
            if before is None:
                options.pop(KEY, None)
            else:
                options[KEY] = before

    # Attention calls

    def serve(
        self, dense: Callable[[], Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Answer one attention call of the host; `dense` is the rest of the chain."""
        run, options = self.run, kwargs.get("transformer_options") or {}
        call: ModelCall | None = options.get(KEY)
        if run is None or call is None or call.served:
            return dense()
        call.served = True
        try:
            return _serve(run.session, self.handle, call, dense, _Attention(q, k, v, heads, args, kwargs), options)
        finally:
            call.served = False


class _Attention:
    """Arguments of the host's `optimized_attention`, in one form."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]):
        names = ("mask", "attn_precision", "skip_reshape", "skip_output_reshape")
        given = {**dict(zip(names, args)), **kwargs}
        self.mask: Tensor | None = given.get("mask")
        self.plain = not given.get("enable_gqa") and given.get("scale") is None
        self.heads = heads
        self.host = (q, k, v)
        self.split = bool(given.get("skip_reshape"))
        self.keep_heads = bool(given.get("skip_output_reshape"))

    @property
    def lengths(self) -> tuple[int, int]:
        axis = 2 if self.split else 1
        return int(self.host[0].shape[axis]), int(self.host[1].shape[axis])

    def to_core(self) -> tuple[Tensor, Tensor, Tensor]:
        """(B, H, L, D) views."""
        if self.split:
            return self.host
        q, k, v = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in self.host)
        return q, k, v

    def from_core(self, out: Tensor) -> Tensor:
        """The host's output form; its own attention returns contiguous tensors, callers may view them."""
        return out if self.keep_heads else out.transpose(1, 2).reshape(out.shape[0], out.shape[2], -1)


def _serve(
    session: Session,
    handle: ReportHandle,
    call: ModelCall,
    dense: Callable[[], Tensor],
    attention: _Attention,
    options: Mapping[str, Any],
) -> Tensor:
    queries, keys = attention.lengths
    tokens = _with_published_grid(call.tokens, options)
    if queries != keys:
        return session.dense(dense, DenseReason.CROSS_ATTENTION)
    if isinstance(tokens, NoLayout):
        return session.dense(dense, tokens.reason)
    if queries != tokens.total:
        known = queries in call.lengths
        return session.dense(dense, DenseReason.CROSS_ATTENTION if known else DenseReason.TOKENS)
    block = (str(options.get("block_type", "")), options.get("block_index", -1))
    if queries in call.lengths and (block[1] == -1 or block in call.seen):
        # Text as long as the video: only the first call of a block is surely the self-attention.
        return session.dense(dense, DenseReason.CROSS_ATTENTION)
    layer = layer_of(call.network, options, call.seen, call.counted)
    call.counted += 1
    position = call.position(layer)
    q, k, v = attention.to_core()
    if not attention.plain:
        return session.dense(dense, DenseReason.BACKEND, position, q)
    bias: Tensor | None = None
    if attention.mask is not None:
        bias = _key_bias(call, attention.mask, tokens, q)
        if bias is None:
            return session.dense(dense, DenseReason.MASK, position, q)
    handle.grid = tokens.grid.as_tuple()
    return session.attention(
        q,
        k,
        v,
        grid=tokens.grid,
        extra_before=tokens.before,
        extra_after=tokens.after,
        position=position,
        dense=dense,
        key_bias=bias,
        from_core=attention.from_core,
    )


def _with_published_grid(tokens: Tokens | NoLayout, options: Mapping[str, Any]) -> Tokens | NoLayout:
    """What the host publishes about this call goes before what was derived from the latent."""
    published = options.get("grid_sizes")
    if isinstance(tokens, NoLayout):
        return tokens
    if published is not None and tuple(published) != tokens.grid.as_tuple():
        grid = type(tokens.grid)(*(int(size) for size in published))
        return Tokens(grid, tokens.before, tokens.after)
    image = options.get("img_slice")
    if image is not None and int(image[1]) == tokens.total:
        # Everything but the video: text first, then reference tokens directly before the video.
        first = int(image[0]) > 0
        if first != (tokens.after == 0):
            return NoLayout(DenseReason.TOKENS, "the order of text and video is not what the host publishes")
    return tokens


def _key_bias(call: ModelCall, mask: Tensor, tokens: Tokens, q: Tensor) -> Tensor | None:
    """A mask as a bias on the extra tokens, (B or 1, extra); None if it touches video tokens or tells rows apart."""
    if id(mask) not in call.bias:
        call.bias[id(mask)] = (mask, _derive_bias(mask, tokens, q))
    bias: Tensor | None = call.bias[id(mask)][1]
    return bias


def _derive_bias(mask: Tensor, tokens: Tokens, q: Tensor) -> Tensor | None:
    if mask.shape[-1] != tokens.total or any(size != 1 for size in mask.shape[1:-1]):
        return None
    if mask.dim() > 2 and mask.shape[0] not in (1, q.shape[0]):
        return None
    columns = mask.reshape(-1, tokens.total)
    if columns.shape[0] not in (1, q.shape[0]) or (mask.dim() == 2 and mask.shape[0] != 1):
        return None
    if columns.dtype == torch.bool:
        columns = torch.zeros_like(columns, dtype=q.dtype).masked_fill(~columns, -torch.inf)
    video = columns[:, tokens.before : tokens.before + tokens.grid.tokens]
    if bool((video != 0).any()):
        return None
    return torch.cat([columns[:, : tokens.before], columns[:, tokens.before + tokens.grid.tokens :]], 1)


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
    patched = model.clone()
    adapter = Adapter(choices, tell_node=tell_node)
    for kind in WRAPPERS:
        patched.remove_wrappers_with_key(kind, KEY)
        patched.add_wrapper_with_key(kind, KEY, _closure(getattr(adapter, kind)))
    options = patched.model_options["transformer_options"] = dict(patched.model_options.get("transformer_options", {}))
    chain.install(options, _closure(adapter.serve))
    return patched, adapter.handle


def _closure(method: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function around a bound method: hosts that deep-copy model options would copy the method's object."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return call
