"""What a case of the coverage test says, and the random tensors that cases are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3))


def vision(tokens: int, width: int) -> SimpleNamespace:
    return SimpleNamespace(penultimate_hidden_states=rand(1, tokens, width), last_hidden_state=rand(1, tokens, width))


@dataclass(frozen=True)
class Case:
    """One model and what its video self-attention must look like.

    Attributes:
        name: shown in the test and in the compatibility table.
        config: class in comfy.supported_models; a host without it skips the case.
        unet: keyword arguments of the diffusion model.
        latent: (C, T, H, W).
        grid: expected token grid. before, after: expected extra tokens; extra says what they are.
        patch: (t, h, w) of the model.
        layers: expected video self-attention calls per model evaluation.
        cond: conditioning besides the text.
        text: (tokens, width) of the text; pooled: width of the pooled output, 0 for none.
        given_first, given: tokens at the two ends of the grid that do not come from the sampler's latent.
        kept: tokens of the latent's first frame, which a noise mask keeps as it is (image to video); 0 for no mask.
        key_bias: the case passes a text mask, which must arrive as a key bias.
        audio: (C, tokens, bands) of a second stream, None for video alone.
        dense: part of the note that must say why the model runs dense; "" for a model that runs sparse.
        dense_reason: the reason its calls must be counted under.
        sampler: name of the host's sampler.
    """

    name: str
    config: str
    unet: dict[str, Any]
    latent: tuple[int, int, int, int]
    grid: tuple[int, int, int]
    before: int = 0
    after: int = 0
    extra: str = ""
    patch: tuple[int, int, int] = (1, 2, 2)
    layers: int = 2
    cond: dict[str, Any] = field(default_factory=dict)
    text: tuple[int, int] = (5, 64)
    pooled: int = 0
    given_first: int = 0
    given: int = 0
    kept: int = 0
    key_bias: bool = False
    audio: tuple[int, ...] | None = None
    dense: str = ""
    dense_reason: str = ""
    sampler: str = "euler"

    def conditioning(self) -> list[Any]:
        pooled = rand(1, self.pooled) if self.pooled else None
        return [[rand(1, *self.text), {"pooled_output": pooled, **self.cond}]]
