"""Codes: a tensor in INT8 with one scale for each row or block, and values as float16 or
FP8 in a power of two of their own.

A code is x / scale rounded to the nearest integer (halves go up), the scale the largest |x| over 127. Something that is
not finite turns the scale into NaN, so that all that is made from these codes says so.
"""

# Functions of Triton take no types.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

# What counts as the largest |x| at least: a bias is divided by scales.
_SMALLEST = tl.constexpr(1.0e-6)
# Scaled values lie below 2^8: with weights of at most 1, a sum over 128 of them stays below 2^15 in float16.
_HALF_BITS = tl.constexpr(8)
# FP8 (e4m3) has four bits of exponent: values below 2^3 and weights of at most 2^6, so that neither loses much at its
# small end, and a sum over 64 of them stays below 2^15.
_FP8_BITS = tl.constexpr(3)
FP8_LIFT = tl.constexpr(6)
# Smaller powers of two would only make accumulators larger: 2^-20 keeps values of 1e-9 apart.
_LEAST_EXPONENT = tl.constexpr(-20)


@triton.jit
def row_codes(x):
    """(codes (m, n) int8, scales (m,) float32) of the rows of a float32 tile (m, n)."""
    largest = tl.maximum(tl.max(tl.abs(x), 1), _SMALLEST)
    scale = largest * (1.0 / 127.0) + tl.sum(x * 0.0, 1)
    return rounded(x * (127.0 / largest)[:, None]), scale


@triton.jit
def block_codes(x):
    """(codes (m, n) int8, scale) of a float32 tile (m, n) as a whole."""
    largest = tl.maximum(tl.max(tl.max(tl.abs(x), 1), 0), _SMALLEST)
    scale = largest * (1.0 / 127.0) + tl.sum(tl.sum(x * 0.0, 1), 0)
    return rounded(x * (127.0 / largest)), scale


@triton.jit
def rounded(x):
    """Nearest integers as int8, halves up. What is not a number becomes some code."""
    return tl.floor(tl.minimum(tl.maximum(x, -127.0), 127.0) + 0.5).to(tl.int8)


@triton.jit
def scaled_values(x, FP8: tl.constexpr):
    """(x * 2^-exponent as float16 or FP8, exponent float32) of a float32 tile (m, n). In float16 it is exact but for
    what is 2^-24 of its largest finite value, and values that are not finite stay what they are; in FP8 (e4m3) they
    become NaN."""
    size = tl.abs(x)
    largest = tl.max(tl.max(tl.where(size < float("inf"), size, 0.0), 1), 0)
    exponent = ((largest.to(tl.int32, bitcast=True) >> 23) & 255) - 126 - (_FP8_BITS if FP8 else _HALF_BITS)
    exponent = tl.maximum(exponent, _LEAST_EXPONENT)
    unit = ((127 - exponent) << 23).to(tl.float32, bitcast=True)
    if FP8:
        # Casts would make the largest number of what is infinite.
        scaled = tl.where(size < float("inf"), x * unit, float("nan")).to(tl.float8e4nv)
    else:
        scaled = (x * unit).to(tl.float16)
    return scaled, exponent.to(tl.float32)
