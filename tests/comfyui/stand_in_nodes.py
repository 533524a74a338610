"""A node pack for tests only: stands in for the text encoders and VAEs, whose files no test machine has.

`StandInTextEncoder` and `StandInVAE` load nothing; their objects answer the host's own CLIPTextEncode, VAEDecode,
VAEDecodeTiled and WanImageToVideo.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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


NODE_CLASS_MAPPINGS = {"StandInTextEncoder": StandInTextEncoder, "StandInVAE": StandInVAE}
