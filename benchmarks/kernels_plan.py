"""What the kernel bench runs: shapes, inputs with structure, variants that must be right first, and their errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from draftattn_core import Layout, Policy, TokenGrid
from draftattn_core.attention import attend
from draftattn_core.backends.reference import attend_reference
from draftattn_core.backends.triton_backend import attend_triton


@dataclass(frozen=True)
class Shape:
    """One attention call: token grid, extra tokens after it, heads, head size."""

    name: str
    grid: tuple[int, int, int]
    extra: int
    heads: int
    dim: int

    @property
    def layout(self) -> Layout:
        return Layout(TokenGrid(*self.grid), 0, self.extra)


SHAPES = (
    Shape("Wan 14B 480p", (21, 30, 52), 0, 40, 128),
    Shape("Wan 14B 720p", (21, 45, 80), 0, 40, 128),
    Shape("HunyuanVideo 1.5 720p", (31, 45, 80), 1000, 16, 128),
    Shape("HunyuanVideo 720p", (33, 45, 80), 256, 24, 128),
    Shape("head size 64", (21, 30, 52), 0, 24, 64),
)
QUICK = ("Wan 14B 720p", "HunyuanVideo 1.5 720p")
DENSITIES = (0.5, 0.25, 0.1)

# What must be right before any speed is told: (head size, type, key block, tail).
CHECKS = tuple(
    (dim, dtype, k_block, tail)
    for dim in (64, 128)
    for dtype, k_block, tail in (
        ("bfloat16", 64, "linear1"),
        ("float16", 64, "linear1"),
        ("bfloat16", 128, "mixed"),
        ("bfloat16", 64, "none"),
    )
)
LIMITS = {"bfloat16": 4e-3, "float16": 5e-4, "float32": 2e-6}


def structured(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (1, H, L, D) that vary smoothly over the video, with noise: neighbours attend alike, as in a model."""
    generator = torch.Generator(device).manual_seed(seed)
    t, h, w = shape.grid
    coarse = (max(2, t // 4), max(2, h // 6), max(2, w // 6))
    tokens = shape.layout.tokens
    out = []
    for noise in (0.7, 0.7, 0.5):
        x = torch.empty(1, tokens, shape.heads, shape.dim, device=device, dtype=dtype).transpose(1, 2)
        for head in range(shape.heads):
            field = torch.randn(1, shape.dim, *coarse, generator=generator, device=device)
            smooth = interpolate(field, size=(t, h, w), mode="trilinear").flatten(2)[0].T
            extra = torch.randn(shape.extra, shape.dim, generator=generator, device=device)
            grain = torch.randn(tokens, shape.dim, generator=generator, device=device)
            x[0, head] = (1.4 * torch.cat([smooth, extra]) + noise * grain).to(dtype)
        out.append(x)
    return out[0], out[1], out[2]


def errors_of(
    dim: int, dtype: torch.dtype, k_block: int, tail: str, device: torch.device, tiny: bool
) -> Iterator[tuple[str, float]]:
    """Relative L2 errors of the backend's paths against the definition in float64, on a ragged call with extras."""
    sizes = (32, 16) if tiny else (128, k_block)
    grid = TokenGrid(3, 5, 7) if tiny else TokenGrid(5, 19, 23)
    layout = Layout(grid, 5, 3 * sizes[0] // 2 + 1, *sizes)
    shape = Shape("check", grid.as_tuple(), 0, 2, dim)
    video = structured(shape, device, dtype)
    extra = torch.randn(3, 1, 2, layout.extra, dim, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    before = layout.extra_before
    q, k, v = (torch.cat([e[:, :, :before], x, e[:, :, before:]], 2) for x, e in zip(video, extra))
    bias = torch.linspace(-3, 0, layout.extra, device=device)[None]
    bias[:, ::5] = -torch.inf
    policy = Policy(density=0.3, tail=("linear2", "none") if tail == "mixed" else tail)
    result = attend(q, k, v, layout, policy, backend="triton", key_bias=bias)
    if result.backend != "triton":
        raise RuntimeError(f"the call was served by {result.backend}")
    truth = attend_reference(result.request)
    for name, out in (("whole call", result.out), ("gathered", attend_triton(result.request))):
        yield name, float((out.double() - truth.double()).norm() / truth.double().norm())


def sampled_error(q: Tensor, k: Tensor, v: Tensor, out: Tensor, rows: int = 128) -> float:
    """Relative L2 error of `out` against dense attention in float32 on evenly spaced rows of every head."""
    picked = torch.linspace(0, q.shape[2] - 1, rows, device=q.device).long()
    wrong = right = 0.0
    for head in range(q.shape[1]):
        keys, values = (x[:, head].float() for x in (k, v))
        logits = q[:, head, picked].float() @ keys.transpose(-1, -2) * q.shape[3] ** -0.5
        exact = logits.softmax(-1) @ values
        wrong += float((out[:, head, picked].float() - exact).square().sum())
        right += float(exact.square().sum())
    return (wrong / right) ** 0.5
