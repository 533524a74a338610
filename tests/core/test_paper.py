"""DraftAttention as published (arXiv 2505.14708, sections 4.1-4.2), written out on the raster grid without the core."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from draftattention.draftattn_core.attention import attend
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import PAPER_TILE, Layout
from draftattention.draftattn_core.method.policy import Policy
from tests.core.cases import relative, smooth_qkv


def published(q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid, text: int, density: float) -> tuple[Tensor, float]:
    """Output and share of kept regions: average pooling of every frame by 8x16, one threshold per head on the softmax
    of the pooled map, kept regions expanded to tokens; text sees and is seen by everything."""
    t, h, w = grid.as_tuple()
    video = grid.tokens

    def pooled(x: Tensor) -> Tensor:
        frames = x[:, :, :video].unflatten(2, (t, h, w)).permute(0, 1, 2, 5, 3, 4).flatten(0, 2)
        regions = F.avg_pool2d(frames, kernel_size=(8, 16), stride=(8, 16))
        return regions.unflatten(0, (x.shape[0], x.shape[1], t)).permute(0, 1, 2, 4, 5, 3).flatten(2, 4)

    scale = q.shape[-1] ** -0.5
    draft = (pooled(q) @ pooled(k).transpose(-1, -2) * scale).softmax(-1)
    dropped = int((1 - density) * draft.shape[-1] ** 2)
    keep = torch.ones_like(draft, dtype=torch.bool)
    if dropped:
        keep = draft >= draft.flatten(2).sort(-1).values[..., dropped - 1, None, None]
    # The one departure: a row the threshold leaves empty, undefined in the paper, keeps its best region.
    best = torch.zeros_like(keep).scatter_(-1, draft.argmax(-1, keepdim=True), True)
    keep |= best & ~keep.any(-1, keepdim=True)
    frame, row, column = (x.flatten() for x in torch.meshgrid(*map(torch.arange, (t, h, w)), indexing="ij"))
    region = (frame * (h // 8) + row // 8) * (w // 16) + column // 16
    mask = torch.ones(*keep.shape[:2], video + text, video + text, dtype=torch.bool)
    mask[:, :, :video, :video] = keep[:, :, region][..., region]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask), float(keep.double().mean())


@pytest.mark.parametrize("density", [0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize(("grid", "text"), [((3, 16, 32), 0), ((2, 24, 32), 40)], ids=str)
def test_the_papers_method_is_the_papers(grid: tuple[int, int, int], text: int, density: float) -> None:
    layout = Layout(TokenGrid(*grid), 0, text, 128, 128, PAPER_TILE)
    q, k, v = smooth_qkv(layout, heads=3)
    expected, kept = published(q, k, v, layout.grid, text, density)
    result = attend(q, k, v, layout, Policy.paper(density))
    regions = layout.grid.tokens // 128
    assert float(result.request.keep[:, :, :regions, :regions].double().mean()) == kept
    assert relative(result.out, expected) < 1e-13
