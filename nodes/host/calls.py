"""One attention call of the host: its arguments in the core's form, and what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...draftattn_core.phrase import Text
from ...draftattn_core.run.report import DenseReason, Position
from ..words import Words
from .layouts import NoLayout, Tokens, layer_of
from .runs import ModelCall


class HostCall:
    """Arguments of the host's `optimized_attention`, which come flat (B, L, H * D) or split into heads (B, H, L, D).

    Attributes:
        mask: what the model passed, or None.
        plain: whether the call has the usual scale and as many key as query heads.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]):
        names = ("mask", "attn_precision", "skip_reshape", "skip_output_reshape")
        given = {**dict(zip(names, args)), **kwargs}
        self.mask: Tensor | None = given.get("mask")
        self.plain = not given.get("enable_gqa") and given.get("scale") is None
        self._heads = heads
        self._tensors = (q, k, v)
        self._split = bool(given.get("skip_reshape"))
        self._keep_heads = bool(given.get("skip_output_reshape"))

    @property
    def lengths(self) -> tuple[int, int]:
        """Number of queries and of keys."""
        axis = 2 if self._split else 1
        return int(self._tensors[0].shape[axis]), int(self._tensors[1].shape[axis])

    def to_core(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v as (B, H, L, D) views."""
        if self._split:
            return self._tensors
        q, k, v = (torch.unflatten(x, 2, (self._heads, -1)).transpose(1, 2) for x in self._tensors)
        return q, k, v

    def from_core(self, out: Tensor) -> Tensor:
        """(B, H, L, D) in the form the host asked for."""
        return out if self._keep_heads else out.transpose(1, 2).reshape(out.shape[0], out.shape[2], -1)


@dataclass(frozen=True)
class Place:
    """What a call turned out to be.

    Attributes:
        reason: why it must run dense; None for a video self-attention the core may serve.
        tokens: its layout. position: where in the run; both None where it is no video self-attention of a known layout.
        bias: key bias (B or 1, extra tokens) of its mask.
        explanation: for the user, where the reason alone does not say enough.
    """

    reason: DenseReason | None
    tokens: Tokens | None = None
    position: Position | None = None
    bias: Tensor | None = None
    explanation: Text = Text()


def classify(model: ModelCall, call: HostCall, options: Mapping[str, Any]) -> Place:
    """Tell what an attention call is; every token must be accounted for.

    Args:
        options: the call's own transformer_options.
    """
    queries, keys = call.lengths
    tokens = with_published(model.tokens, options, model.image)
    if queries != keys:
        return _uneven(model, call, tokens, options)
    if isinstance(tokens, NoLayout):
        if queries in model.lengths:
            return Place(DenseReason.CROSS_ATTENTION)
        return Place(tokens.reason, explanation=tokens.message)
    if queries != tokens.total:
        if queries in model.lengths:
            return Place(DenseReason.CROSS_ATTENTION)
        explanation = Words("call_other_length", tokens=queries, expected=tokens.total)
        return Place(DenseReason.TOKENS, explanation=explanation)
    if queries in model.lengths:
        # Text as long as the video: only the first call of a block is surely the self-attention.
        index = options.get("block_index")
        if index is None or (str(options.get("block_type", "")), index) in model.seen:
            return Place(DenseReason.CROSS_ATTENTION)
    layer = layer_of(model.network, options, model.seen, model.counted)
    model.counted += 1
    position = model.position(layer)
    if not call.plain:
        return Place(DenseReason.BACKEND, tokens, position)
    if call.mask is None:
        return Place(None, tokens, position)
    bias = _known_bias(model, call, tokens)
    return Place(DenseReason.MASK if bias is None else None, tokens, position, bias)


def _uneven(model: ModelCall, call: HostCall, tokens: Tokens | NoLayout, options: Mapping[str, Any]) -> Place:
    """More keys than queries: cross-attention, or a model that attends to its video in parts."""
    queries, keys = call.lengths
    known = queries in model.lengths or keys in model.lengths
    if isinstance(tokens, NoLayout) or known or not queries < tokens.total <= keys:
        return Place(DenseReason.CROSS_ATTENTION)
    if model.part == 0:
        model.part_layer = layer_of(model.network, options, model.seen, model.counted)
    model.part += queries
    position = model.position(model.part_layer)
    if model.part >= tokens.total:
        model.part = 0
        model.counted += 1
    if call.mask is not None:
        return Place(DenseReason.MASK, tokens, position, explanation=Words("call_part_masked"))
    return Place(DenseReason.TOKENS, tokens, position, explanation=Words("call_parts", queries=queries, keys=keys))


def with_published(
    tokens: Tokens | NoLayout, options: Mapping[str, Any], image: Sequence[int] | None = None
) -> Tokens | NoLayout:
    """What the host publishes about this very call goes before what was derived from the latent.

    Args:
        options: the call's transformer_options.
        image: [start, end] of everything but the text as told to a patch of ours just before the call.
    """
    image = options.get("img_slice", image)
    if isinstance(tokens, NoLayout):
        candidate = tokens.candidate
        told = candidate is not None and image is not None and int(image[1]) == candidate.total and int(image[0]) > 0
        return candidate if told and candidate is not None else tokens
    published = options.get("grid_sizes")
    if published is not None and tuple(published) != tokens.grid.as_tuple():
        grid = type(tokens.grid)(*(int(size) for size in published))
        return Tokens(grid, tokens.before, tokens.after)
    if image is not None and int(image[1]) == tokens.total and (int(image[0]) > 0) != (tokens.before > tokens.after):
        return NoLayout(DenseReason.TOKENS, Words("layout_other_order"))
    return tokens


def _known_bias(model: ModelCall, call: HostCall, tokens: Tokens) -> Tensor | None:
    """`key_bias` once per mask and model call: reading the mask back waits for the device."""
    assert call.mask is not None
    if id(call.mask) not in model.bias:
        q = call.to_core()[0]
        # The mask itself is kept too, so that its id stays its own.
        model.bias[id(call.mask)] = (call.mask, key_bias(call.mask, tokens, q.shape[0], q.dtype))
    bias: Tensor | None = model.bias[id(call.mask)][1]
    return bias


def key_bias(mask: Tensor, tokens: Tokens, batch: int, dtype: torch.dtype) -> Tensor | None:
    """A mask over keys as a bias on the extra tokens, (batch or 1, extra).

    Args:
        mask: (..., L) added to the logits, or boolean with True for keys that count.

    Returns:
        None if it tells query rows or heads apart or touches video tokens: such a call must run dense.
    """
    if mask.shape[-1] != tokens.total or any(size != 1 for size in mask.shape[1:-1]):
        return None
    columns = mask.reshape(-1, tokens.total)
    per_batch = mask.dim() > 2 and columns.shape[0] == batch
    if columns.shape[0] != 1 and not per_batch:
        return None
    if columns.dtype == torch.bool:
        columns = torch.zeros_like(columns, dtype=dtype).masked_fill(~columns, -torch.inf)
    end = tokens.before + tokens.grid.tokens
    if bool((columns[:, tokens.before : end] != 0).any()):
        return None
    return torch.cat([columns[:, : tokens.before], columns[:, end:]], 1)
