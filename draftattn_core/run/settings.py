"""Settings: what the user chose for a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from ..backends.nearest import Nearest
from ..backends.registry import backend_names
from ..geometry.grid import TokenGrid
from ..geometry.layout import Layout
from ..geometry.order import Tile
from ..method.policy import Policy
from ..method.rules import rule_of
from .profile import Profile
from .schedule import Schedule
from .step_cache.settings import StepCacheSettings

BUDGETS = ("off", "error")
BITS = ("16", "auto", "8", "fp8")


@dataclass(frozen=True)
class Settings:
    """What the user chose.

    Attributes:
        policy: selection and tail; its density is replaced by the schedule's, call by call.
        schedule: density by noise level, layer and head.
        auto_tail: let the error probe choose each head's tail at the first sparse call of every layer.
        auto_gain: let it fit each head's tail gain there (see `tail_gain`).
        q_block, k_block, tile, order: see `Layout`.
        backend: registry name or "auto".
        min_tokens: calls with fewer video tokens run dense.
        skip: when an evaluation of the model is answered without it.
        budgets: "error" spends the schedule's density where the measured error is largest (see `Spending`), with the
            work that it would have cost everywhere alike; "off" gives every head the same.
        max_error: relative L2 error that the attention output of every layer may have beside dense; the density then
            follows from it, and the schedule says only where calls are dense. 0 for off.
        profile: figures of an earlier run of this model, for budgets from the first sparse call on; None for none.
        bits: "16" computes scores of Q and K as they are. "8" measures at the first sparse call of every layer which of
            its heads lose little by INT8 codes (`run.bits`), and computes their scores by them wherever the backend
            can; "auto" does so on GPUs where that is faster by published rates (`kernels.configs.codes_first`). "fp8"
            is "8" with weights and values in FP8 (`Policy.fp8_values`) where the backend has them, which is measured.
        record: measure every layer once per bucket of progress, dense or sparse, for a profile (`Run.profile`).
        record_masks: let dense calls vote for CalibAtt's masks (`Run.calibration`), with blocks of `mask_block` tokens.

    Raises:
        ValueError: if blocks, tile or order do not fit together, no backend has that name, or budgets or bits are
            unknown.
    """

    policy: Policy = field(default_factory=Policy)
    schedule: Schedule = field(default_factory=Schedule)
    auto_tail: bool = False
    auto_gain: bool = True
    q_block: int = 128
    k_block: int = 64
    tile: Tile | None = None
    order: str = "tile"
    backend: str = "auto"
    min_tokens: int = 0
    skip: StepCacheSettings = StepCacheSettings()
    budgets: str = "off"
    max_error: float = 0.0
    profile: Profile | None = None
    bits: str = "16"
    record: bool = False
    record_masks: bool = False
    mask_block: int = 128

    def __post_init__(self) -> None:
        self.layout(TokenGrid(1, 1, 1))
        if not 1 <= self.mask_block <= 1024:
            raise ValueError(f"masks have blocks of 1 to 1024 tokens, got {self.mask_block}: 128 is as published")
        if self.backend not in backend_names():
            raise ValueError(f"unknown backend {self.backend!r}: choose one of {', '.join(backend_names())}")
        if self.budgets not in BUDGETS:
            raise ValueError(f"unknown budgets {self.budgets!r}: choose one of {', '.join(BUDGETS)}")
        if self.bits not in BITS:
            raise ValueError(f"unknown bits {self.bits!r}: choose one of {', '.join(BITS)}")
        if self.bits == "fp8":
            object.__setattr__(self, "policy", replace(self.policy, fp8_values=True))
        if not 0.0 <= self.max_error < 1.0:
            raise ValueError(f"max_error is a relative error from 0 (off) to below 1, got {self.max_error}: try 0.05")
        if self.policy.method == "tail_error" and not self.policy.has_tail:
            raise ValueError("the method tail_error ranks by what a tail loses: choose a tail, or another method")
        if self.policy.method == "calibatt" and (self.profile is None or self.profile.calibration is None):
            raise ValueError(
                "the method calibatt takes its masks from a profile: record dense runs with masks "
                "(DraftAttention Calibrate, or Settings.record_masks) and pass their profile"
            )

    @property
    def spends(self) -> bool:
        """Whether densities follow measured errors; calibrated masks bring their own."""
        if self.policy.method == "calibatt":
            return False
        return self.budgets != "off" or self.max_error > 0.0 or self.profile is not None

    @property
    def probes(self) -> bool:
        """Whether the error probe runs at the first sparse call of every layer."""
        rule = rule_of(self.policy.method)
        # What such a rule made of a call is not what the call's own rows can be measured by.
        if rule.order is not None or rule.attend is not None:
            return False
        return self.auto_tail or (self.auto_gain and self.policy.has_tail)

    def layout(self, grid: TokenGrid, extra_before: int = 0, extra_after: int = 0) -> Layout:
        return Layout(grid, extra_before, extra_after, self.q_block, self.k_block, self.tile, self.order)

    def nearest(self, near: Nearest) -> Settings:
        """The same as a backend serves them that cannot serve them as they are; a tile of another size goes, and so do
        codes of ours, as it has a number format of its own."""
        blocks = near.kind.q_block, near.kind.k_block
        tile = self.tile if self.tile is not None and math.prod(self.tile) == max(blocks) else None
        policy, gains = near.policy(self.policy), self.auto_gain and near.gains
        return replace(self, policy=policy, auto_gain=gains, q_block=blocks[0], k_block=blocks[1], tile=tile, bits="16")
