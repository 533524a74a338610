"""INT8 scores as the kernels compute them, in torch: keys without a common vector, codes, and their scales.

Adding the same number to all logits of a row leaves its softmax as it is, so any one vector per head may be subtracted
from all of its keys, the tail's mean keys included; without their mean, keys are small and their codes fine. Keys have
one scale per key block, queries one per row. Rounding is done in float32 as in `kernels/codes.py`, whatever the inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry.layout import LayoutTables

# Tokens that a head's common vector is the mean of: another vector would do as well, only with coarser codes.
SAMPLED_KEYS = 1024
_LARGEST_CODE = 127.0
# What counts as the largest |x| at least: kernels divide by scales.
_SMALLEST = 1e-6
# `kernels/codes.py` says why.
_FP8_VALUE_BITS, _LEAST_EXPONENT = 3, -20
_FP8_WEIGHT = 2.0**6


def key_shift(k: Tensor) -> Tensor:
    """(B, H, D) float32, the mean of about `SAMPLED_KEYS` evenly spaced keys of k (B, H, L, D); 0 where not finite."""
    step = max(1, k.shape[2] // SAMPLED_KEYS)
    return k[:, :, ::step].mean(2, dtype=torch.float32).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def key_codes(k: Tensor, shift: Tensor, tables: LayoutTables) -> tuple[Tensor, Tensor]:
    """Codes (B, H, L, D) float32 of the keys k (B, H, L, D) without `shift` (B, H, D), and each token's scale
    (B, H, L, 1), which its key block shares; NaN for a block with something that is not finite."""
    moved = k.float() - shift.unsqueeze(2)
    block = tables.k.of_token[tables.inverse].expand(moved.shape[:3])
    largest = moved.new_zeros(*moved.shape[:2], tables.k.total).scatter_reduce_(2, block, moved.abs().amax(-1), "amax")
    return _codes(moved, largest.gather(2, block).unsqueeze(-1))


def query_codes(q: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (B, H, rows, D) float32 of queries q (B, H, rows, D), and each row's scale (B, H, rows, 1)."""
    wide = q.float()
    return _codes(wide, wide.abs().amax(-1, keepdim=True))


def fp8_values(v: Tensor, tables: LayoutTables) -> Tensor:
    """Values v (B, H, L, D) as kernels multiply them in FP8 (e4m3): float32, rounded in a power of two that puts the
    largest of each key block below 2^3. What is not finite is NaN."""
    wide = v.float()
    block = tables.k.of_token[tables.inverse].expand(wide.shape[:3])
    size = wide.abs().where(wide.isfinite(), 0.0).amax(-1)
    largest = size.new_zeros(*size.shape[:2], tables.k.total).scatter_reduce_(2, block, size, "amax")
    exponent = (torch.frexp(largest).exponent - _FP8_VALUE_BITS).clamp_min(_LEAST_EXPONENT)
    unit = torch.exp2(exponent.float()).gather(2, block).unsqueeze(-1)
    return rounded_to_fp8(wide.where(wide.isfinite(), torch.nan) / unit) * unit


def fp8_weights(weights: Tensor) -> Tensor:
    """Weights of at most 1, float32 rounded as kernels do it: to FP8 (e4m3) after a factor of 2^6."""
    return rounded_to_fp8(weights.float() * _FP8_WEIGHT) / _FP8_WEIGHT


def rounded_to_fp8(x: Tensor) -> Tensor:
    """x float32 to the nearest number of FP8 (e4m3), which reaches to 448, as float32."""
    return x.to(torch.float8_e4m3fn).float()


def _codes(x: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    largest = largest.clamp_min(_SMALLEST)
    codes = (x * (_LARGEST_CODE / largest)).clamp_(-_LARGEST_CODE, _LARGEST_CODE).add_(0.5).floor_()
    scale = (largest * (1.0 / _LARGEST_CODE)).where(largest.isfinite(), torch.nan)
    return codes.nan_to_num_(), scale
