"""The attention processor that stands around a diffusers processor and answers its attention call.

It runs the inner processor's own code, in which `dispatch_attention_fn` is ours: projections, norms, RoPE, LoRA and
fused projections stay the model's, nothing of diffusers is changed for anyone else, and a dense call goes on to the
very function it was meant for, with the user's attention backend.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from ...geometry.grid import TokenGrid
from ...phrase import Phrase
from ...run.report import DenseReason, Position
from ...run.run import Run
from .clock import Tick
from .parallel import HeadExchange, RankHeads
from .text_mask import TextMask, read_text_mask

_DISPATCH = "dispatch_attention_fn"
NO_BACKWARD = Phrase(
    "note_no_backward", "sparse attention has no backward pass, so calls that record gradients ran dense"
)


@dataclass
class ModelCall:
    """One call of the transformer: what its attention modules need to know.

    Attributes:
        run: the run it belongs to.
        grid: its token grid.
        tick: where it stands in the run.
        conditional: whether it serves the condition itself.
        indices: see `HeadExchange.call`.
    """

    run: Run
    grid: TokenGrid
    tick: Tick
    conditional: bool = True
    indices: dict[Hashable, Tensor] = field(default_factory=dict)
    _read: tuple[Tensor, TextMask | None] | None = None

    def text_mask(self, mask: Tensor | None, text: int) -> TextMask | None:
        """`read_text_mask`, once for all layers that are given the same mask."""
        if mask is None:
            return TextMask(text)
        if self._read is None or self._read[0] is not mask:
            self._read = (mask, read_text_mask(mask, self.grid.tokens, text))
        return self._read[1]


class ServedModel:
    """What the processors of one transformer share.

    Attributes:
        run: the run under way, or the last one.
        layers: number of video self-attention modules.
        text: whether text tokens follow the video in them.
        active: False once the processors shall stand aside.
    """

    def __init__(self, run: Run, layers: int, text: bool) -> None:
        self.run = run
        self.layers = layers
        self.text = text
        self.active = True
        self._now = threading.local()

    @property
    def call(self) -> ModelCall | None:
        """The transformer call under way in this thread."""
        return getattr(self._now, "call", None)

    @call.setter
    def call(self, call: ModelCall | None) -> None:
        self._now.call = call


def _with_attention(processor: Any, attention: Callable[..., Tensor]) -> FunctionType:
    """The processor's own `__call__`, calling `attention` where it says `dispatch_attention_fn`.

    Raises:
        TypeError: if the processor does not compute attention that way.
    """
    call = type(processor).__call__
    if not isinstance(call, FunctionType) or _DISPATCH not in call.__code__.co_names:
        raise TypeError(
            f"the attention processor {type(processor).__name__} does not call diffusers' {_DISPATCH}, so its "
            "attention cannot be served: restore the model's own processor, or use a current release of diffusers"
        )
    scope = {**call.__globals__, _DISPATCH: attention}
    return FunctionType(call.__code__, scope, call.__name__, call.__defaults__, call.__closure__)


def _widened(mask: Tensor, length: int) -> Tensor:
    """A mask over text tokens as HunyuanVideo 1.5's processor makes it: (B, 1, L, L), for queries and keys."""
    row = nn.functional.pad(mask, (length - mask.shape[1], 0), value=True).bool()
    return row[:, None, None, :] & row[:, None, :, None]


def _records_gradients(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


class DraftAttentionProcessor:
    """Processor of one video self-attention module.

    Args:
        inner: the processor the module had.
        layer: index of the module in the model.
        model: what it shares with the others.

    Raises:
        TypeError: if `inner` computes attention in a way that cannot be served.
    """

    def __init__(self, inner: Any, layer: int, model: ServedModel) -> None:
        _with_attention(inner, nn.functional.scaled_dot_product_attention)
        self.inner = inner
        self.layer = layer
        self.model = model

    # `set_attention_backend` and `enable_parallelism` write these; the inner processor's code reads them.
    @property
    def _attention_backend(self) -> Any:
        return self.inner._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.inner._attention_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return self.inner._parallel_config

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        self.inner._parallel_config = config

    # Under torch.compile this runs eagerly and the rest of the block is compiled. The signature matters:
    # `Attention.forward` passes on only the keyword arguments it finds in it.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        if not self.model.active:
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        dispatch = type(self.inner).__call__.__globals__[_DISPATCH]
        mask = attention_mask

        def attention(
            query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
        ) -> Tensor:
            def attend(q: Tensor, k: Tensor, v: Tensor, heads: RankHeads | None, **options: Any) -> Tensor:
                def dense() -> Tensor:
                    full = attn_mask
                    if mask is not None and full is not None and full.is_meta:
                        full = _widened(mask, q.shape[1])
                    out: Tensor = dispatch(q, k, v, attn_mask=full, **options)
                    return out

                return self._serve(q, k, v, mask, plain, dense, heads)

            plain = not options.get("is_causal") and options.get("scale") is None
            call, exchange = self.model.call, HeadExchange.of(options.get("parallel_config"))
            if exchange is None or call is None:
                return attend(query, key, value, None, **options)
            if _records_gradients(query, key, value):
                # Only diffusers' own exchange has a backward pass; within it, gradients could no longer be told.
                call.run.telling.note(NO_BACKWARD)
                place = Position(call.tick.step, call.tick.progress, self.layer, self.model.layers)
                everything = lambda: dispatch(query, key, value, attn_mask=attn_mask, **options)  # noqa: E731
                return call.run.calls.dense(
                    everything, DenseReason.BACKEND, place, query.transpose(1, 2), keys=call.grid.tokens
                )
            place = Position(call.tick.step, call.tick.progress, self.layer, self.model.layers)
            even = query.shape[2] % exchange.ranks == 0
            order = call.run.dealt(place, query.shape[2]) if even else None
            heads = exchange.heads_here(query.shape[2], order)
            alone = {**options, "parallel_config": None}
            return exchange.call(
                query,
                key,
                value,
                call.grid.tokens,
                lambda q, k, v: attend(q, k, v, heads, **alone),
                order,
                call.indices,
            )

        if attention_mask is not None and attention_mask.dim() == 2:
            # HunyuanVideo 1.5's processor widens this to L x L: gigabytes for a video, nothing on the meta device.
            attention_mask = attention_mask.to("meta")
        run = _with_attention(self.inner, attention)
        return run(self.inner, attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)

    def _serve(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        plain: bool,
        dense: Callable[[], Tensor],
        heads: RankHeads | None = None,
    ) -> Tensor:
        """One attention call in diffusers' form: query, key, value and result (B, L, H, D)."""
        call = self.model.call
        if call is None:
            return self.model.run.calls.dense(dense, DenseReason.UNKNOWN_GRID)
        run, tick, grid = call.run, call.tick, call.grid
        position = Position(tick.step, tick.progress, self.layer, self.model.layers, conditional=(call.conditional,))
        if heads is not None:
            position = replace(position, first_head=heads.first, all_heads=heads.all_heads, heads=heads.dealt)
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        read = DenseReason.MASK if not plain else self._read_text(call, q, k, v, mask)
        if isinstance(read, DenseReason):
            return run.calls.attention(q, k, v, grid=grid, position=position, dense=dense, refused=read)

        # Text that no sample reads is left out. Its own rows become zeros: they only ever feed such text again.
        unread = q.shape[2] - grid.tokens - read.kept
        if unread:
            q, k, v = (x[:, :, : grid.tokens + read.kept] for x in (q, k, v))

        def from_core(out: Tensor) -> Tensor:
            host = out.transpose(1, 2)
            return nn.functional.pad(host, (0, 0, 0, 0, 0, unread)) if unread else host

        return run.calls.attention(
            q,
            k,
            v,
            grid=grid,
            position=position,
            dense=dense,
            extra_after=read.kept,
            key_bias=read.bias,
            from_core=from_core,
        )

    def _read_text(
        self, call: ModelCall, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> TextMask | DenseReason:
        """What the core must know of the text in a call of (B, H, L, D) tensors, or why the call goes dense."""
        if _records_gradients(q, k, v):
            call.run.telling.note(NO_BACKWARD)
            return DenseReason.BACKEND
        text = q.shape[2] - call.grid.tokens
        if text < 0 or (text and not self.model.text) or k.shape != q.shape:
            return DenseReason.TOKENS
        try:
            return call.text_mask(mask, text) or DenseReason.MASK
        except Exception as error:
            call.run.failures.raised(error)
            return DenseReason.ERROR
