"""diffusers' context parallelism: the attention call between its two exchanges, and plans for models that have none.

Ulysses exchanges heads for tokens: before attention every rank holds some tokens of all heads, within it all tokens of
some heads. Attention is per head, so what a rank then computes is exactly its part of the single-process call. The
exchanges stay diffusers' own, even and uneven ones; only the attention between them is ours. They run in every call,
sparse or dense, so ranks never wait for an exchange that another rank left out.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

RING = (
    "ring attention shows a rank only some of the keys of a query, and draft attention selects among all of them: use "
    "ContextParallelConfig(ulysses_degree=N). Partial results could be merged by their log-sum-exp, tail included, "
    "once blocks are selected across ranks; that is not built"
)


class ParallelismError(ValueError):
    """The parallelism that a model was given cannot be served; says what can."""


@dataclass(frozen=True)
class RankHeads:
    """Which heads of a layer a rank holds between the exchanges.

    Attributes:
        first: number of the first one; all_heads: of the layer.
        dealt: numbers of all of them, where they do not follow each other; () where they do.
    """

    first: int
    all_heads: int
    dealt: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class HeadExchange:
    """Attention of one model over the ranks of its Ulysses group.

    Attributes:
        config: diffusers' ParallelConfig, set up.
        rank, ranks: of this process in the group, and how many there are.
        uneven: whether tokens and heads may be dealt unevenly (`ulysses_anything`).
    """

    config: Any
    rank: int
    ranks: int
    uneven: bool

    @classmethod
    def of(cls, config: Any) -> HeadExchange | None:
        """How a model exchanges its heads; None where it is not parallel over tokens.

        Args:
            config: what `enable_parallelism` left on the model.

        Raises:
            ParallelismError: for ring attention.
        """
        context = getattr(config, "context_parallel_config", None)
        if context is None:
            return None
        if (context.ring_degree or 1) > 1:
            raise ParallelismError(RING)
        return cls(config, context._ulysses_local_rank, context.ulysses_degree, context.ulysses_anything)

    @property
    def group(self) -> Any:
        """The process group of the ranks."""
        return self.config.context_parallel_config._ulysses_mesh.get_group()

    def check_heads(self, heads: int) -> None:
        """Raises ParallelismError if `heads` heads cannot be dealt to the ranks."""
        each = -(-heads // self.ranks)
        if heads % self.ranks == 0 or (self.uneven and each * self.ranks - heads < each):
            return
        even = [n for n in range(1, heads + 1) if heads % n == 0]
        works = f"ulysses_degree must be one of {', '.join(map(str, even))}"
        some = [n for n in range(2, heads) if n not in even and -(-heads // n) * n - heads < -(-heads // n)]
        if some:
            works += f", or with ulysses_anything=True one of {', '.join(map(str, some))}"
        raise ParallelismError(f"{heads} heads cannot be dealt to {self.ranks} ranks: {works}")

    def heads_here(self, heads: int, order: tuple[int, ...] | None) -> RankHeads:
        """Which of `heads` heads come to this rank, as they come or in the order in which they are dealt."""
        each = -(-heads // self.ranks)
        if order is None:
            return RankHeads(self.rank * each, heads)
        dealt = order[self.rank * each : (self.rank + 1) * each]
        return RankHeads(dealt[0], heads, dealt)

    def call(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        video: int,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor],
        order: tuple[int, ...] | None = None,
        kept: dict[Hashable, Tensor] | None = None,
    ) -> Tensor:
        """Run `attend` between the exchanges.

        Args:
            query, key, value: (B, tokens of this rank, H, D), where each rank holds a part of the video's tokens,
                then one of the text's.
            video: tokens of the whole video.
            attend: computes (B, L, heads of this rank, D) from as much, all tokens in host order: video, then text.
            order: in which heads are dealt to the ranks; None as they come.
            kept: index tensors of earlier calls, to be used again.

        Returns:
            (B, tokens of this rank, H, D).
        """
        from diffusers.models.attention_dispatch import _templated_context_parallel_attention

        self.check_heads(query.shape[2])
        indices = {} if kept is None else kept

        def index(key: Hashable, make: Callable[[], Tensor]) -> Tensor:
            at = key, query.device
            if at not in indices:
                indices[at] = make().to(query.device)
            return indices[at]

        def between(_: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            text = q.shape[1] - video
            if text <= 0 or k.shape[1] != q.shape[1]:
                return attend(q, k, v)
            tokens = index(("tokens", video, text), lambda: exchange_order(video, text, self.ranks))
            out = attend(*(x.index_select(1, tokens) for x in (q, k, v)))
            return torch.empty_like(out).index_copy_(1, tokens, out)

        dealt = None if order is None else index(("heads", order), lambda: torch.tensor(order))
        if dealt is not None:
            query, key, value = (x.index_select(2, dealt) for x in (query, key, value))
        out: Tensor = _templated_context_parallel_attention(
            query, key, value, forward_op=between, backward_op=None, _parallel_config=self.config
        )
        return out if dealt is None else torch.empty_like(out).index_copy_(2, dealt, out)


def exchange_order(video: int, text: int, ranks: int) -> Tensor:
    """Where each token of [video, text] stands after the exchange, (video + text,) int64 on the CPU.

    The exchange puts what the ranks hold one after another, and each holds a part of the video, then one of the text,
    as `torch.tensor_split` cuts them.
    """
    parts = zip(torch.arange(video).tensor_split(ranks), torch.arange(text).tensor_split(ranks), strict=True)
    arrived = torch.cat([torch.cat([of_video, of_text + video]) for of_video, of_text in parts])
    return arrived.argsort()


def context_parallel_plan(transformer: Any) -> dict[str, Any] | None:
    """A `cp_plan` for `enable_parallelism`: the model's own where it has one, else ours for HunyuanVideo and 1.5, Wan
    VACE and SkyReels-V2.

        transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2, ulysses_anything=True),
                                       cp_plan=context_parallel_plan(transformer))

    HunyuanVideo's splits video and text tokens alike; prompts have any length, hence `ulysses_anything`. It needs draft
    attention on the transformer, which puts the tokens back in order for the text mask in sparse and in dense calls;
    diffusers alone would pair the mask with other tokens.

    Raises:
        ParallelismError: if the model has no plan and there is none for it here; with the reason where it is known.
    """
    name = type(transformer).__name__
    if getattr(transformer, "_cp_plan", None) is not None:
        return None
    if name not in _PLANS:
        raise ParallelismError(_UNSPLIT.get(name, f"{name} has no cp_plan, in diffusers or here"))
    return _PLANS[name](transformer)


def _along(dim: int, dims: int) -> Any:
    """An input that is split over the ranks along `dim`, where it has `dims` dimensions."""
    from diffusers.models._modeling_parallel import ContextParallelInput

    return ContextParallelInput(split_dim=dim, expected_dims=dims, split_output=False)


def _rope(dim: int, dims: int) -> dict[int, Any]:
    """Cosines and sines, split as they leave their module."""
    from diffusers.models._modeling_parallel import ContextParallelInput

    return dict.fromkeys((0, 1), ContextParallelInput(split_dim=dim, expected_dims=dims, split_output=True))


def _gathered() -> Any:
    """Tokens of all ranks, (B, L, C), as they leave a module."""
    from diffusers.models._modeling_parallel import ContextParallelOutput

    return ContextParallelOutput(gather_dim=1, expected_dims=3)


def _hunyuan_video(transformer: Any) -> dict[str, Any]:
    if getattr(transformer.config, "image_condition_type", None) == "token_replace":
        raise ParallelismError(
            "HunyuanVideo's image to video by token_replace treats the first frame's tokens apart, by their place in "
            "what a rank holds: it cannot be split over ranks"
        )
    return {
        "rope": _rope(0, 2),
        "transformer_blocks.0": {"hidden_states": _along(1, 3), "encoder_hidden_states": _along(1, 3)},
        "proj_out": _gathered(),
    }


def _vace(transformer: Any) -> dict[str, Any]:
    # Every control block is given the whole latent; the control tokens go on from block to block.
    later = {f"vace_blocks.{i}": {"hidden_states": _along(1, 3)} for i in range(1, len(transformer.vace_blocks))}
    return {
        "rope": _rope(1, 4),
        "vace_blocks.0": {"hidden_states": _along(1, 3), "control_hidden_states": _along(1, 3)},
        **later,
        "blocks.0": {"hidden_states": _along(1, 3)},
        "proj_out": _gathered(),
    }


def _skyreels(transformer: Any) -> dict[str, Any]:
    # Its cross-attention is exchanged as well, where every rank brings the whole text: keys that are all there N times
    # have the same softmax. Diffusion forcing has a noise level per token, in every block and behind the last norm.
    return {
        "rope": _rope(1, 4),
        "blocks.0": {"hidden_states": _along(1, 3)},
        "blocks.*": {"temb": _along(2, 4)},
        "norm_out": _gathered(),
    }


_PLANS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "HunyuanVideoTransformer3DModel": _hunyuan_video,
    "HunyuanVideo15Transformer3DModel": _hunyuan_video,
    "WanVACETransformer3DModel": _vace,
    "SkyReelsV2Transformer3DModel": _skyreels,
}
_UNSPLIT = {
    "WanAnimateTransformer3DModel": (
        "Wan Animate's face adapter pairs the tokens of each frame with the face of that moment, between the blocks, "
        "and needs all tokens in order there: a cp_plan cannot gather and split them within a block"
    )
}
