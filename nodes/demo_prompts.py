"""Text embeddings of the tiny model: a closed formula in place of a text encoder. Needs torch only."""

from __future__ import annotations

import math

import torch

# The classes of procedural video the model was trained on. The empty prompt is the unconditional one (for CFG).
PROMPTS = ("shapes", "pan", "both")
TEXT_TOKENS = 4
TEXT_DIM = 1024


def prompt_embedding(name: str) -> torch.Tensor:
    """Embedding of a prompt, float32 of shape (1, TEXT_TOKENS, TEXT_DIM) with standard deviation 1; zeros for "".

    Token k of prompt p is a sine wave over the channels with a frequency of its own, so that all of them are close to
    orthogonal. Raises ValueError for a name that is neither "" nor one of `PROMPTS`.
    """
    if name == "":
        return torch.zeros(1, TEXT_TOKENS, TEXT_DIM)
    if name not in PROMPTS:
        raise ValueError(f"unknown prompt {name!r}: use one of {', '.join(PROMPTS)} or the empty prompt")
    token = torch.arange(TEXT_TOKENS, dtype=torch.float64)[:, None] + TEXT_TOKENS * PROMPTS.index(name)
    channel = torch.arange(TEXT_DIM, dtype=torch.float64)
    frequency = math.pi * (token + 1) / (TEXT_TOKENS * len(PROMPTS) + 1)
    return (math.sqrt(2) * torch.sin(frequency * (channel + 0.5) + token)).to(torch.float32)[None]
