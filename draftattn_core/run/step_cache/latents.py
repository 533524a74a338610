"""Latents part by part: arithmetic over the one latent of a video, or those of video and audio together."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

Parts: TypeAlias = "tuple[Tensor, ...]"


def kept(parts: Parts, offload: bool) -> Parts:
    """Copies to hold, for hosts change what they pass in place; on the CPU if `offload`."""
    if offload:
        return tuple(part.detach().to("cpu", copy=True) for part in parts)
    return tuple(part.detach().clone(memory_format=torch.contiguous_format) for part in parts)


def beside(parts: Parts, others: Parts) -> Parts:
    """`parts` on the devices of `others`."""
    return tuple(part.to(other.device) for part, other in zip(parts, others, strict=True))


def mean_change(a: Parts, b: Parts) -> Tensor:
    """Mean of |a - b| of each part, float32 (parts,)."""
    return torch.stack([(x.float() - y.float()).abs().mean() for x, y in zip(a, b, strict=True)])


def mean_size(a: Parts) -> Tensor:
    """Mean of |a| of each part, float32 (parts,)."""
    return torch.stack([x.float().abs().mean() for x in a])


def error_norms(found: Parts, true: Parts) -> Tensor:
    """Norms of found - true and of true, float32 (2, parts, batch)."""
    norms = []
    for f, t in zip(found, true, strict=True):
        error = torch.linalg.vector_norm((f.float() - t.float()).flatten(1), dim=1)
        norms.append(torch.stack([error, torch.linalg.vector_norm(t.float().flatten(1), dim=1)]))
    return torch.stack(norms, 1)


def relative_error(norms: Tensor) -> Tensor:
    """Norm of an error over the norm of the true value, one number: the worst of all parts and batch entries."""
    return (norms[0] / norms[1]).amax()
