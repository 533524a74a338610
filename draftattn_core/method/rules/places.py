"""Where the video's tokens lie, for rules that go by place."""

from __future__ import annotations

from torch import Tensor

from ...geometry.layout import LayoutTables, build_tables


def on_the_host(tables: LayoutTables) -> LayoutTables:
    """The same tables on the CPU, made anew from their layout: the device is not asked, and not waited for."""
    return tables if tables.perm.device.type == "cpu" else build_tables(tables.layout)


def token_frames(tables: LayoutTables) -> tuple[Tensor, Tensor]:
    """Frame and place within the frame (row times width plus column) of every video token in block order, int64."""
    grid = tables.layout.grid
    token = tables.perm[: grid.tokens] - tables.layout.extra_before
    return token // grid.frame_tokens, token % grid.frame_tokens
