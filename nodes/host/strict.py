"""The strict mode: refuse a run that would be dense for a reason the user did not ask for, before it starts."""

from __future__ import annotations

from typing import Any

from ...draftattn_core.backends.call_kind import CallKind, traits_of, variants_of
from ...draftattn_core.backends.registry import choose_backend, nearest_served
from ...draftattn_core.phrase import said
from ...draftattn_core.run.settings import Settings
from ..words import CLAUSES, LIST, Joined, Words
from .layouts import NoLayout, Tokens


def refuse_surprises(
    tokens: Tokens | NoLayout | None,
    settings: Settings,
    bypassed: tuple[str, ...],
    patcher: Any,
    other_cache: str | None = None,
    by_speed: bool = False,
) -> None:
    """Check what can be known before the first model call.

    Args:
        tokens: the layout to expect, see `layouts.describe`; None if unknown.
        bypassed: attention modules another node has replaced.
        patcher: the host's ModelPatcher.
        other_cache: what keeps ours from skipping the steps it was asked to skip; None if nothing does.
        by_speed: whether `speed` asked for it, not a Skip Steps node.

    Raises:
        ValueError: with every problem and what to do about it.
    """
    problems: list[str] = []
    if isinstance(tokens, NoLayout):
        problems.append(tokens.message)
    elif tokens is None:
        problems.append(Words("strict_no_grid"))
    elif tokens.grid.tokens < settings.min_tokens:
        problems.append(Words("strict_small", tokens=tokens.grid.tokens, least=settings.min_tokens))
    if bypassed:
        problems.append(Words("strict_bypassed", names=Joined(bypassed[:3], LIST)))
    if other_cache is not None:
        problems.append(Words("strict_speed_other_cache" if by_speed else "strict_other_cache", cache=other_cache))
    if isinstance(tokens, Tokens):
        dtype = patcher.model.manual_cast_dtype or patcher.model.get_dtype()
        head_dim = _head_dim(patcher.model.diffusion_model)
        # Text may come with a mask, and its kernels are judged by themselves.
        for biased in (False, True) if tokens.before + tokens.after else (False,):
            variants, traits = variants_of(settings.policy, biased=biased), traits_of(settings.policy)
            blocks = settings.q_block, settings.k_block
            kind = CallKind(patcher.load_device, dtype, head_dim, *blocks, variants, *traits)
            try:
                if nearest_served(settings.backend, kind) is None:
                    choose_backend(settings.backend, kind)
            except ValueError as error:
                problems.append(said(error))
                break
    if problems:
        raise ValueError(Words("strict_refused", problems=Joined(problems, CLAUSES)))


def _head_dim(network: Any) -> int:
    """Size of a head, as far as the model says; 128 is what nearly all video models have."""
    heads = getattr(network, "num_heads", None)
    width = getattr(network, "dim", None) or getattr(network, "hidden_size", None)
    return int(width) // int(heads) if heads and width else 128
