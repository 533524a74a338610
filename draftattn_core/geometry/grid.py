"""The token grid: how many tokens a video has along time, height and width after patchify."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class TokenGrid:
    """Sizes (T, H, W) of a video in tokens; host order is raster: w fastest, then h, then t.

    Raises:
        ValueError: if a size is smaller than 1.
    """

    t: int
    h: int
    w: int

    def __post_init__(self) -> None:
        if min(self.t, self.h, self.w) < 1:
            raise ValueError(f"a token grid needs at least one token along each axis, got {self.as_tuple()}")

    @property
    def tokens(self) -> int:
        return self.t * self.h * self.w

    @property
    def frame_tokens(self) -> int:
        return self.h * self.w

    def as_tuple(self) -> tuple[int, int, int]:
        return (self.t, self.h, self.w)

    def __str__(self) -> str:
        return f"{self.t}x{self.h}x{self.w}"
