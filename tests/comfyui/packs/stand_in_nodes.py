"""A node pack for tests only: stands in for files that no test machine has, and for other packs.

`StandInTextEncoder` and `StandInVAE` load nothing; their objects answer the host's own CLIPTextEncode, VAEDecode,
VAEDecodeTiled and WanImageToVideo. `StandInModel` is a toy model with its conditioning, of a kind we know or not;
`StandInForeignAttention` overwrites a model's attention, as other packs do.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1]))
import toy_runs
import unknown_model

WIDTHS = {"wan": (4096, 0), "hunyuan_video": (64, 768), "hunyuan_video_15": (64, 0)}


class TextEncoder:
    """Answers what CLIPTextEncode asks of a CLIP."""

    def __init__(self, kind: str) -> None:
        self.width, self.pooled = WIDTHS[kind]

    def tokenize(self, text: str, **_: Any) -> int:
        return sum(text.encode()) % 1000

    def encode_from_tokens_scheduled(self, tokens: int, **_: Any) -> list[Any]:
        generator = torch.Generator().manual_seed(tokens)
        embedding = torch.randn(1, 7, self.width, generator=generator)
        return [[embedding, {"pooled_output": torch.randn(1, self.pooled) if self.pooled else None}]]


class VAE:
    """Decodes a latent (B, C, T, H, W) to small grey frames, encodes pictures (T, H, W, 3) to zeros."""

    def decode(self, samples: Tensor) -> Tensor:
        grey = samples[:, :1].float().sigmoid().permute(0, 2, 3, 4, 1)
        return grey.expand(*grey.shape[:-1], 3)

    def decode_tiled(self, samples: Tensor, **_: Any) -> Tensor:
        return self.decode(samples)

    def encode(self, pixels: Tensor) -> Tensor:
        frames, height, width, _ = pixels.shape
        return torch.zeros(1, 16, (frames - 1) // 4 + 1, height // 8, width // 8)

    def temporal_compression_decode(self) -> int:
        return 4

    def spacial_compression_decode(self) -> int:
        return 8

    def spacial_compression_encode(self) -> int:
        return 8


class StandInTextEncoder:
    RETURN_TYPES = ("CLIP",)
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"type": (list(WIDTHS),)}}

    def make(self, type: str) -> tuple[TextEncoder]:
        return (TextEncoder(type),)


class StandInVAE:
    RETURN_TYPES = ("VAE",)
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def make(self) -> tuple[VAE]:
        return (VAE(),)


class StandInModel:
    RETURN_TYPES = ("MODEL", "CONDITIONING")
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"kind": (["Wan", "unknown"],)}}

    def make(self, kind: str) -> tuple[Any, Any]:
        if kind == "unknown":
            return unknown_model.flux(), unknown_model.TEXT
        return toy_runs.wan(), toy_runs.TEXT


class StandInForeignAttention:
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",)}}

    def patch(self, model: Any) -> tuple[Any]:
        def attention(func: Any, *args: Any, **kwargs: Any) -> Tensor:
            return func(*args, **kwargs)

        patched = model.clone()
        options = dict(patched.model_options.get("transformer_options", {}))
        patched.model_options["transformer_options"] = {**options, "optimized_attention_override": attention}
        return (patched,)


NODES = (StandInTextEncoder, StandInVAE, StandInModel, StandInForeignAttention)
NODE_CLASS_MAPPINGS = {node.__name__: node for node in NODES}
