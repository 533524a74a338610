"""Presets: from what the user picked to the core's settings, once the run's steps and tokens are known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from ...draftattn_core.geometry.order import Tile
from ...draftattn_core.method.policy import METHODS, TAILS, Policy, TailName
from ...draftattn_core.run.profile import Profile
from ...draftattn_core.run.published import ANY_DENSITY, PUBLISHED, published, rule_geometry
from ...draftattn_core.run.schedule import PRESET_DENSITY, PRESETS, Schedule, constant, preset
from ...draftattn_core.run.settings import Settings
from ...draftattn_core.run.speed import SPEEDS, Speed, speed_of
from ...draftattn_core.run.step_cache.settings import StepCacheSettings
from ..words import Words

# Presets that are somebody's published method: nothing of ours is added to them.
PUBLISHED_PRESETS = tuple(PUBLISHED)
PRESET_NAMES = ("auto", *PRESETS, "paper", "custom", *(name for name in PUBLISHED if name != "paper"))
TAIL_NAMES = ("auto", *TAILS)
PRESET_METHOD = "auto"
METHOD_NAMES = (PRESET_METHOD, *METHODS)
# Rules whose masks are fixed or measured as a whole: they keep no frame on request.
UNANCHORED = ("svg", "radial", "adaspa", "calibatt")
NO_SPEED = "off"
SPEED_NAMES = (NO_SPEED, "auto", *SPEEDS)
# As the widget shows them: tokens per query block / per key block.
BLOCKS = {"128/64": (128, 64), "128/128": (128, 128), "64/64": (64, 64)}
DEFAULT_MIN_TOKENS = 12000
MOST_LAYERS = 1000
# Of `auto`, see `auto_density`.
FEWEST_STEPS, FEW_STEPS, LONG_VIDEO_TOKENS = 4, 12, 60_000
FEWEST_STEPS_DENSITY = 0.40


@runtime_checkable
class ScheduleSpec(Protocol):
    """A schedule that depends on the number of steps; what the type SPARSITY_SCHEDULE carries besides a Schedule."""

    def resolve(self, steps: int) -> Schedule: ...


@dataclass(frozen=True)
class Choices:
    """What the user chose on the node.

    Attributes:
        preset: one of `PRESET_NAMES`.
        sparsity: share of block pairs not computed exactly, for `custom` and the published presets.
        dense_start: share of the noise range at its noisy end that runs dense, for `custom`.
        tail: one of `TAIL_NAMES`.
        blocks: query and key block size.
        tile: tile of the larger block; None for the default.
        dense_layers: layers that always run dense, negative from the end.
        min_tokens: fewer video tokens run dense.
        anchor_first, anchor_last: always keep the first or last frame.
        backend: name in the core's registry.
        schedule: replaces the preset's schedule; its own dense layers win over `dense_layers` where it has some.
        strict: refuse to start a run that would be dense for an unexpected reason.
        profile, max_error, budgets: see `Settings`.
        speed: one of `SPEED_NAMES`. Other than off, it sets density, budgets and skipping; the preset `custom` and a
            schedule keep their densities, as means that budgets spend, and published presets stay as published.
        method: one of `METHOD_NAMES`; "auto" is the preset's own. Published presets have theirs.
        bits: see `Settings`; published presets compute in 16.
    """

    preset: str = "auto"
    sparsity: float = 0.75
    dense_start: float = 0.1
    tail: str = "auto"
    blocks: tuple[int, int] = (128, 64)
    tile: Tile | None = None
    dense_layers: tuple[int, ...] = ()
    min_tokens: int = DEFAULT_MIN_TOKENS
    anchor_first: bool = False
    anchor_last: bool = False
    backend: str = "auto"
    schedule: Schedule | ScheduleSpec | None = None
    strict: bool = False
    profile: Profile | None = None
    max_error: float = 0.0
    budgets: str = "off"
    speed: str = NO_SPEED
    method: str = PRESET_METHOD
    bits: str = "16"

    def settings(self, steps: int, tokens: int) -> Settings:
        """Settings of a run.

        Args:
            steps: steps of the whole trajectory, also where this sampler runs only a part of it.
            tokens: video tokens; 0 if unknown.

        Raises:
            ValueError: if a choice is out of range; the message says what to do.
        """
        if self.preset not in PRESET_NAMES:
            raise ValueError(f"unknown preset {self.preset!r}: choose one of {', '.join(PRESET_NAMES)}")
        speed = self._speed()
        base = self._published(max(1, steps)) if self.preset in PUBLISHED_PRESETS else self._own()
        schedule = self._schedule(max(1, steps), tokens, speed, base)
        if self.dense_layers and not schedule.dense_layers:
            schedule = schedule.with_dense_layers(self.dense_layers)
        return replace(
            base,
            schedule=schedule,
            backend=self.backend,
            min_tokens=self.min_tokens,
            max_error=self.max_error,
            budgets=self.budgets if speed is None else "error",
            bits="16" if self.preset in PUBLISHED_PRESETS else self.bits,
            skip=StepCacheSettings() if speed is None else speed.skip(),
        )

    def _published(self, steps: int) -> Settings:
        """The preset's own settings, its schedule included."""
        density = 1.0 - self.sparsity
        return published(self.preset, density, steps=steps, dense_layers=self.dense_layers, profile=self.profile)

    def _own(self) -> Settings:
        """Rule, tail and blocks that the user picked; a rule that asks for an order or blocks of its own has them."""
        tail: TailName = "linear1" if self.tail == "auto" else self.tail  # type: ignore[assignment]
        policy = Policy(tail=tail) if self.method == PRESET_METHOD else Policy(tail=tail, method=self.method)
        if policy.method not in UNANCHORED:
            policy = replace(policy, keep_first_frame=self.anchor_first, keep_last_frame=self.anchor_last)
        blocks, tile, order = rule_geometry(policy.method, self.blocks, self.tile, self.profile)
        return Settings(
            policy=policy,
            auto_tail=self.tail == "auto",
            q_block=blocks[0],
            k_block=blocks[1],
            tile=tile,
            order=order,
            profile=self.profile,
        )

    def _speed(self) -> Speed | None:
        """The speed that counts; None for none."""
        if self.speed == NO_SPEED or self.preset in PUBLISHED_PRESETS:
            return None
        return speed_of(self.speed)

    def _schedule(self, steps: int, tokens: int, speed: Speed | None, base: Settings) -> Schedule:
        if isinstance(self.schedule, Schedule):
            return self.schedule
        if self.schedule is not None:
            return self.schedule.resolve(steps)
        if self.preset in PUBLISHED_PRESETS:
            return base.schedule
        if self.preset == "custom":
            # Calibrated masks bring their densities.
            own = self.method == "calibatt"
            return constant(ANY_DENSITY if own else 1.0 - self.sparsity, warmup=self.dense_start)
        if speed is not None:
            return speed.schedule(steps)
        if self.preset == "auto":
            return preset("balanced", steps, auto_density(steps, tokens))
        return preset(self.preset, steps)


def auto_density(steps: int, tokens: int) -> float:
    """Density the preset `auto` aims for: few steps leave errors less room to heal, short videos have less to skip.

    The densities are those of `balanced` and `quality`, which rest on the quality bench. Where they change, and the
    margin for the fewest steps, is what users of other packs report, not measured here: see docs/quality.md.
    """
    if steps <= FEWEST_STEPS:
        return FEWEST_STEPS_DENSITY
    if steps <= FEW_STEPS or tokens < LONG_VIDEO_TOKENS:
        return PRESET_DENSITY["quality"]
    return PRESET_DENSITY["balanced"]


def parse_layers(text: str) -> tuple[int, ...]:
    """Layers from text such as "0, -1" or "0, 47-49".

    Raises:
        ValueError: if a part is neither a number nor a range that goes up, or is beyond what models have.
    """
    layers: list[int] = []
    for part in (piece.strip() for piece in text.replace(";", ",").split(",")):
        if not part:
            continue
        first, dash, last = part.partition("-") if not part.startswith("-") else (part, "", "")
        try:
            ends = int(first), int(last if dash else first)
        except ValueError:
            raise ValueError(Words("check_layers", part=repr(part))) from None
        if ends[0] > ends[1]:
            raise ValueError(Words("check_layers_down", part=repr(part)))
        if max(map(abs, ends)) > MOST_LAYERS:
            raise ValueError(Words("check_layers_many", part=part, most=MOST_LAYERS))
        layers += range(ends[0], ends[1] + 1)
    return tuple(dict.fromkeys(layers))


def parse_tile(text: str) -> Tile | None:
    """Tile from text such as "4x4x8" (frames x rows x columns); None for "auto".

    Raises:
        ValueError: for anything else.
    """
    if text.strip().lower() in ("", "auto"):
        return None
    parts = text.lower().replace(" ", "").split("x")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise ValueError(Words("check_tile", value=repr(text)))
    t, h, w = (int(part) for part in parts)
    return (t, h, w)
