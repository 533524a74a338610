"""Whether text comes before or after the video in HunyuanVideo's joint attention, by asking the host's own block.

ComfyUI turned the order around in 0.14.0 and does not publish it before the attention of a double block. So one tiny
block of the model's own class runs once on the CPU with its video tokens marked as NaN, and the marks are found again
in the queries.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

TEXT, VIDEO = 2, 3


def text_comes_first(network: Any) -> bool | None:
    """True for [text, video], False for [video, text], None if the block would not say."""
    block_class: Any = type(network.double_blocks[0])
    return _ask(block_class)


@lru_cache(maxsize=4)
def _ask(block_class: type) -> bool | None:
    import comfy.ops

    marks: list[list[bool]] = []

    def record(func: Any, q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        marks.append(q.isnan().any(-1)[0, 0].tolist())
        return torch.zeros(1, TEXT + VIDEO, 8)

    try:
        block = block_class(8, 1, 1.0, device="cpu", dtype=torch.float32, operations=comfy.ops.disable_weight_init)
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.fill_(0.1)
            block(
                img=torch.full((1, VIDEO, 8), torch.nan),
                txt=torch.rand(1, TEXT, 8),
                vec=torch.zeros(1, 8),
                pe=None,
                transformer_options={"optimized_attention_override": record},
            )
    except Exception:  # another class of block: its order stays unknown and its calls run dense
        return None
    if marks == [[False] * TEXT + [True] * VIDEO]:
        return True
    if marks == [[True] * VIDEO + [False] * TEXT]:
        return False
    return None
