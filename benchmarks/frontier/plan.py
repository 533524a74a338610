"""What the frontier measures, in which order: scenarios of (checkpoint, grids, steps), each over some seeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.frontier.methods import Method, methods
from benchmarks.quality.plan import BIG_GRIDS, SMALL_GRIDS
from demo.checkpoint import CHECKPOINT
from draftattention.draftattn_core import TokenGrid

LIVELY = Path(__file__).parents[1] / "models" / "tiny_wan_lively.safetensors"
CHECKPOINTS = {"calm": CHECKPOINT, "lively": LIVELY}
# The path that verdicts between samplers are made against.
CONVERGED_STEPS = 200


@dataclass(frozen=True)
class Scenario:
    """Rounds that are averaged together.

    Attributes:
        model: key of `CHECKPOINTS`.
        steps: of the dense reference.
        grids, seeds: every pair of them is a round.
    """

    model: str
    steps: int
    grids: tuple[TokenGrid, ...]
    seeds: tuple[int, ...]

    @property
    def real(self) -> bool:
        """Whether its grids have a real size."""
        return self.grids[0] in BIG_GRIDS

    @property
    def name(self) -> str:
        return f"{self.model}, {self.steps} steps, {'real' if self.real else 'small'} grids"

    @property
    def methods(self) -> list[Method]:
        """What is measured in every round beside the dense run; of the second checkpoint the main rows."""
        return methods(self.steps, real=self.real, main=self.model != "calm")

    @property
    def rounds(self) -> list[tuple[TokenGrid, int]]:
        """Grids take turns, so that a run cut short has seen both."""
        return [(grid, seed) for seed in self.seeds for grid in self.grids]


def scenarios(quick: bool) -> list[Scenario]:
    """In the order of their worth: the presets stand on the first three."""
    if quick:
        return [Scenario("calm", 4, SMALL_GRIDS[:1], (0, 1)), Scenario("calm", 20, SMALL_GRIDS[:1], (0,))]
    seeds = tuple(range(8))
    return [
        Scenario("calm", 20, SMALL_GRIDS, seeds),
        Scenario("lively", 20, SMALL_GRIDS, seeds),
        Scenario("calm", 20, BIG_GRIDS[:1], seeds[:4]),
        Scenario("calm", 4, SMALL_GRIDS, seeds),
        Scenario("calm", 8, SMALL_GRIDS, seeds),
        Scenario("lively", 4, SMALL_GRIDS, seeds),
        Scenario("calm", 50, SMALL_GRIDS, seeds),
        Scenario("calm", 4, BIG_GRIDS[:1], seeds[:4]),
    ]
