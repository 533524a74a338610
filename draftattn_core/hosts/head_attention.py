"""Draft attention as a plain attention function, for engines that exchange heads for tokens and then call one.

    function = HeadAttention(Settings(), TokenGrid(21, 45, 80), layers=40, rank=rank, ranks=ulysses_degree)
    out, lse = function(query, key, value, dropout_p=0.0, is_causal=False)         # the form of xDiT's functions
    out = function.inner(dense, q, k, v, transformer_options={})                   # the form of raylight's hook

Such an engine tells neither layer nor step: the function counts the self-attention calls it is given, `layers` to an
evaluation, in the order of the model. What is no self-attention over the tokens it knows of runs dense and is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..geometry.grid import TokenGrid
from ..run.report import DenseReason, Position, RunReport
from ..run.run import Run
from ..run.settings import Settings

# What xFuser hands to the function between its exchanges, as far as it changes attention, and where it does not.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "dropout_p": (0.0, None),
    "causal": (False, None),
    "softmax_scale": (None,),
    "window_size": ((-1, -1), None),
    "alibi_slopes": (None,),
    "return_attn_probs": (False, None),
    "joint_tensor_query": (None,),
    "joint_tensor_key": (None,),
    "joint_tensor_value": (None,),
}


class HeadAttention:
    """Attention over all tokens and some heads of a layer, one run long.

    Ranks do not speak to each other here, so what would have to be decided together is refused.

    Args:
        settings: what the user chose.
        grid: the video's tokens, in this order.
        before, after: other tokens around them (text, sound, and those that make the ranks' shares even), which are
            kept by all.
        layers: self-attention layers of the model; evaluations: how often the model is called in the run, None if
            unknown: then `settings.schedule` is asked at its clean end.
        rank, ranks: which share of every layer's heads comes here, the first `1/ranks` of them to rank 0.

    Raises:
        ValueError: for budgets, which rest on the heads of all ranks, or a step cache, which is not asked here.
    """

    def __init__(
        self,
        settings: Settings,
        grid: TokenGrid,
        layers: int,
        *,
        before: int = 0,
        after: int = 0,
        evaluations: int | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if settings.spends or settings.record:
            raise ValueError("budgets rest on the heads of all ranks, which do not meet here: switch budgets off")
        if settings.skip.rule != "off":
            raise ValueError("steps are not skipped here, where the model itself is not called: switch skip off")
        if layers < 1 or not 0 <= rank < ranks:
            raise ValueError(f"rank {rank} of {ranks}, {layers} layers: a rank is below their number, layers above 0")
        if before < 0 or after < 0:
            raise ValueError(f"{before} tokens before the video and {after} after it: there are none or some")
        self.grid = grid
        self.before = before
        self.after = after
        self.layers = layers
        self.rank = rank
        self.ranks = ranks
        self._evaluations = evaluations
        self._calls = 0
        self.run = Run(settings).start(evaluations)

    @property
    def report(self) -> RunReport:
        """Counts of this rank's heads."""
        return self.run.report

    def finish(self) -> RunReport:
        """End the run: free what it holds."""
        return self.run.finish()

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, is_causal: bool = False, **more: Any
    ) -> tuple[Tensor, None]:
        """xDiT's form: (B, H, L, D) tensors; there is no log-sum-exp, so it serves Ulysses and no ring.

        Args:
            more: what an engine gives its own functions beside; not looked at.
        """

        def dense() -> Tensor:
            out: Tensor = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, dropout_p=dropout_p, is_causal=is_causal
            )
            return out

        return self._serve(query, key, value, dense, lambda out: out, plain=not (is_causal or dropout_p)), None

    def inner(
        self, dense: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *, transformer_options: Any, **more: Any
    ) -> Tensor:
        """The form of raylight's inner attention, (B, L, H, D): `dense(q, k, v, **more)` is what it would compute."""
        query, key, value = (x.transpose(1, 2) for x in (q, k, v))
        return self._serve(
            query, key, value, lambda: dense(q, k, v, **more), lambda out: out.transpose(1, 2), plain=_is_plain(more)
        )

    def _serve(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dense: Callable[[], Tensor],
        from_core: Callable[[Tensor], Tensor],
        *,
        plain: bool,
    ) -> Tensor:
        if q.shape[2] != k.shape[2] or q.shape[2] != self.before + self.grid.tokens + self.after:
            reason = DenseReason.CROSS_ATTENTION if q.shape[2] != k.shape[2] else DenseReason.TOKENS
            return self.run.calls.dense(dense, reason)
        evaluation, layer = divmod(self._calls, self.layers)
        self._calls += 1
        heads = q.shape[1]
        position = Position(
            evaluation,
            1.0 if self._evaluations is None else min(1.0, evaluation / self._evaluations),
            layer,
            self.layers,
            first_head=self.rank * heads if self.ranks > 1 else 0,
            all_heads=self.ranks * heads if self.ranks > 1 else 0,
        )
        refused = None if plain else DenseReason.MASK
        return self.run.calls.attention(
            q,
            k,
            v,
            grid=self.grid,
            position=position,
            dense=dense,
            extra_before=self.before,
            extra_after=self.after,
            from_core=from_core,
            refused=refused,
        )


def _is_plain(options: Mapping[str, Any]) -> bool:
    """Whether these options leave attention as it is."""
    return all(
        any(value is plain or value == plain for plain in _PLAIN[name])
        for name, value in options.items()
        if name in _PLAIN
    )
