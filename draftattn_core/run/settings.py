"""Settings: what the user chose for a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..backends.registry import backend_names
from ..geometry.grid import TokenGrid
from ..geometry.layout import Layout
from ..geometry.order import Tile
from ..method.policy import Policy
from .schedule import Schedule
from .step_cache.settings import StepCacheSettings


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

    Raises:
        ValueError: if blocks, tile or order do not fit together, or no backend has that name.
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

    def __post_init__(self) -> None:
        self.layout(TokenGrid(1, 1, 1))
        if self.backend not in backend_names():
            raise ValueError(f"unknown backend {self.backend!r}: choose one of {', '.join(backend_names())}")

    @property
    def probes(self) -> bool:
        """Whether the error probe runs at the first sparse call of every layer."""
        return self.auto_tail or (self.auto_gain and self.policy.has_tail)

    def layout(self, grid: TokenGrid, extra_before: int = 0, extra_after: int = 0) -> Layout:
        return Layout(grid, extra_before, extra_after, self.q_block, self.k_block, self.tile, self.order)
