"""A host's attention mask over [video, text], as the core takes it: a bias on extra tokens after the video."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TextMask:
    """What a mask says about the text tokens.

    Attributes:
        kept: text tokens up to the last one that any sample of the batch reads; those after it can be left out.
        bias: (B, kept) float32, -inf where a sample hides a token; None if every kept token is read by all.
    """

    kept: int
    bias: Tensor | None = None


def read_text_mask(mask: Tensor, video: int, text: int) -> TextMask | None:
    """Translate a mask; one transfer from the device, so call it once per model evaluation.

    Args:
        mask: bool (True = read) or additive float, (B, 1, 1, L) or (B, L), where L is `video` + `text` or less:
            tokens it leaves out at the front are read by all.
        video, text: tokens of the call.

    Returns:
        None if the mask cannot be expressed: it differs by head or query, or says something about video tokens.
    """
    if mask.dim() == 4 and mask.shape[1:3] == (1, 1):
        mask = mask[:, 0, 0]
    if mask.dim() != 2 or mask.shape[1] > video + text:
        return None
    if mask.is_floating_point():
        bias = mask.float()
    else:
        bias = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask.bool(), -torch.inf)
    missing = video + text - mask.shape[1]
    bias = torch.nn.functional.pad(bias, (missing, 0))
    on_host = bias.cpu()
    if bool((on_host[:, :video] != 0).any()):
        return None
    read = (on_host[:, video:] > -torch.inf).any(0).nonzero()
    kept = int(read[-1]) + 1 if len(read) else 0
    if not bool((on_host[:, video : video + kept] != 0).any()):
        return TextMask(kept)
    return TextMask(kept, bias[:, video : video + kept])
