"""Where the video's tokens lie, for rules that go by place."""

from __future__ import annotations

from torch import Tensor

from ...geometry.layout import LayoutTables


def token_frames(tables: LayoutTables) -> tuple[Tensor, Tensor]:
    """Frame and place within the frame (row times width plus column) of every video token in block order, int64."""
    grid = tables.layout.grid
    token = tables.perm[: grid.tokens] - tables.layout.extra_before
    return token // grid.frame_tokens, token % grid.frame_tokens
