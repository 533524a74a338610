"""Configurations: tile sizes, warps and stages per architecture and head size. Nothing is tuned at run time: they are
fixed rows, or what a sweep on such a device left in a tuning table (`tuning.py`)."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

from .tuning import read_table, same_triton


@dataclass(frozen=True)
class AttendConfig:
    """How `attend` is cut.

    Attributes:
        block_m, block_n: query rows and keys of a tile, at most the query and key block.
        block_g: pooled keys of a tile of the tail.
        warps: per program.
        stages: buffers of the loop over listed blocks.
        tail_stages: buffers of the loop over pooled keys.
    """

    block_m: int
    block_n: int
    block_g: int
    warps: int
    stages: int
    tail_stages: int

    def within(self, q_block: int, k_block: int) -> AttendConfig:
        """The same for blocks of this size: a smaller tile of keys, and more of them under way."""
        block_n = min(self.block_n, k_block)
        stages = self.stages * (self.block_n // block_n)
        return replace(self, block_m=min(self.block_m, q_block), block_n=block_n, stages=stages)


@dataclass(frozen=True)
class PrepareConfig:
    """How `prepare` is cut.

    Attributes:
        warps: of the pass over K and V.
        mean_warps: of the pass over Q.
        prefetch: size, in numbers, of the tiles that are fetched while the one before is worked on; 0 for none.
    """

    warps: int = 8
    mean_warps: int = 4
    prefetch: int = 0

    def prefetches(self, tile: int) -> bool:
        """Whether tiles of so many numbers are fetched one ahead."""
        return tile == self.prefetch


# Shared memory a program may use, bytes.
SHARED_LIMIT = {
    "sm_80": 166_912,
    "sm_86": 101_376,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "sm_120": 101_376,
    "gfx942": 65_536,
    "gfx1100": 65_536,
    "gfx1201": 65_536,
}

# (architecture, head size) -> configuration of the pointer kernel, chosen from what compiles without spills.
ATTEND: dict[tuple[str, int], AttendConfig] = {
    ("sm_80", 64): AttendConfig(128, 64, 64, 8, 3, 2),
    ("sm_80", 128): AttendConfig(128, 64, 16, 8, 3, 2),
    ("sm_86", 64): AttendConfig(128, 64, 64, 8, 3, 2),
    ("sm_86", 128): AttendConfig(128, 64, 16, 8, 3, 2),
    ("sm_89", 64): AttendConfig(128, 64, 64, 8, 3, 2),
    ("sm_89", 128): AttendConfig(128, 64, 16, 8, 3, 2),
    ("sm_90", 64): AttendConfig(128, 128, 64, 8, 3, 2),
    ("sm_90", 128): AttendConfig(128, 128, 64, 8, 2, 2),
    ("sm_100", 64): AttendConfig(128, 128, 64, 8, 3, 2),
    ("sm_100", 128): AttendConfig(128, 128, 32, 8, 2, 2),
    ("sm_120", 64): AttendConfig(128, 64, 16, 8, 3, 2),
    ("sm_120", 128): AttendConfig(128, 64, 16, 8, 3, 3),
    ("gfx942", 64): AttendConfig(128, 64, 32, 8, 2, 1),
    ("gfx942", 128): AttendConfig(128, 64, 32, 8, 2, 1),
    ("gfx1100", 64): AttendConfig(128, 32, 16, 16, 2, 1),
    ("gfx1100", 128): AttendConfig(128, 32, 16, 16, 2, 1),
    ("gfx1201", 64): AttendConfig(128, 32, 16, 16, 2, 1),
    ("gfx1201", 128): AttendConfig(128, 32, 16, 16, 2, 1),
}

# Rows of their own for INT8 scores. Here: as many products a pair as with the tile above, and no stack instead of 60 B;
# but K and V are read for 64 query rows at a time instead of 128.
_ATTEND_CODES = {("gfx1100", 128): AttendConfig(64, 64, 16, 16, 2, 1)}

# RDNA has half the registers per thread for these tiles: more threads share them.
_PREPARE = dict.fromkeys(("gfx1100", "gfx1201"), PrepareConfig(warps=16))
# 254 registers of 255: elsewhere, or with larger tiles, two tiles at a time spill. Smaller ones leave room for two
# programs, which hide each other's waiting.
_PREPARE["sm_90"] = PrepareConfig(prefetch=64 * 128)

# GeForce and its siblings: tensor cores at half rate where sums are float32.
_HALF_SUMS = ("sm_86", "sm_89", "sm_120")

# Compute capabilities and AMD chips that share a row with a sibling.
_SIBLINGS = {
    "sm_87": "sm_86",
    "sm_88": "sm_86",
    "sm_103": "sm_100",
    "sm_110": "sm_100",
    "sm_121": "sm_120",
    "gfx90a": "gfx942",
    "gfx950": "gfx942",
    "gfx1101": "gfx1100",
    **dict.fromkeys(("gfx1102", "gfx1103", "gfx1150", "gfx1151", "gfx1152", "gfx1153"), "gfx1100"),
    "gfx1200": "gfx1201",
}


def attend_config(architecture: str, dim: int, ranks: int, codes: bool = False) -> AttendConfig:
    """The configuration of the pointer kernel; `codes` for scores of INT8 codes.

    Raises:
        ValueError: if there is none for this architecture or head size; the message says which there are.
    """
    config = tuned_attend(architecture).get(dim)
    if config is None:
        config = fixed_attend(architecture, dim)
        if codes:
            config = _ATTEND_CODES.get((_SIBLINGS.get(architecture, architecture), dim), config)
    # The second rank's products take the registers of half a tile.
    return replace(config, block_g=max(16, config.block_g // 2)) if ranks > 1 else config


def fixed_attend(architecture: str, dim: int) -> AttendConfig:
    """The fixed row of an architecture, for at most one rank. Raises what `attend_config` does."""
    config = ATTEND.get((_SIBLINGS.get(architecture, architecture), dim))
    if config is None:
        known = ", ".join(dict.fromkeys(name for name, _ in ATTEND))
        raise ValueError(f"no kernel configuration for {architecture}, head size {dim}: there is 64 and 128 on {known}")
    return config


@functools.cache
def tuned_attend(architecture: str) -> dict[int, AttendConfig]:
    """Head size -> what a sweep on this very architecture found with a Triton like the one here. Read once."""
    table = read_table(architecture)
    if table is None or not same_triton(table.triton, triton_version()):
        return {}
    return {dim: AttendConfig(**numbers) for dim, numbers in table.attend.items()}


def triton_version() -> str:
    """Of the Triton installed here, by whichever name it is packaged; "none" without one."""
    for package in ("triton", "triton-windows", "pytorch-triton-rocm"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "none"


def prepare_config(architecture: str) -> PrepareConfig:
    """The configuration of the passes over Q, K and V."""
    return _PREPARE.get(_SIBLINGS.get(architecture, architecture), PrepareConfig())


def codes_first(architecture: str) -> bool:
    """Whether INT8 scores are to be expected faster there, by published peak rates: where products of INT8 have four
    times the rate of 16-bit ones that are summed in float32. Not measured."""
    return _SIBLINGS.get(architecture, architecture) in _HALF_SUMS


def sums_in_half(architecture: str) -> bool:
    """Whether 16-bit products summed in float16 are twice as fast there as summed in float32, by published rates."""
    return _SIBLINGS.get(architecture, architecture) in _HALF_SUMS


def fp8_sums(architecture: str) -> bool:
    """Whether FP8 products summed in float16 are twice as fast there as 16-bit ones, by published rates."""
    return _SIBLINGS.get(architecture, architecture) in ("sm_89", "sm_120")


def architecture_of(capability: tuple[int, int], gcn: str | None = None) -> str:
    """Name of a device's row: from its compute capability, or on ROCm from its gcnArchName ("gfx942:sramecc+")."""
    return gcn.split(":")[0] if gcn else f"sm_{capability[0]}{capability[1]}"


@dataclass(frozen=True)
class HopperConfig:
    """How the warp-specialised `attend` is cut. Its tiles are a query block of 128 and 128 keys, in one block or two.

    Attributes:
        stages: buffers of K and V, for such a step each.
        block_g: pooled keys of a tile of the tail.
        tail_stages: buffers of the tail's operands; with one there is nothing to specialise.
    """

    stages: int
    block_g: int
    tail_stages: int


# Steps of 128 keys that fit beside Q, by head size.
_HOPPER_STAGES = {64: 4, 128: 2}


def hopper_config(dim: int, k_block: int, ranks: int) -> HopperConfig:
    """The configuration of the warp-specialised kernels of sm_90.

    Raises:
        ValueError: if there is none for this head size or key block.
    """
    stages = _HOPPER_STAGES.get(dim)
    if stages is None or k_block > 128:
        raise ValueError(f"no warp-specialised kernel for head size {dim} and key blocks of {k_block}")
    # A second rank is two more operands to buffer.
    return HopperConfig(stages, 32 if ranks > 1 else 64, 2)
