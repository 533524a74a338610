"""Published systems as their authors ran them, as settings: rule, tail, blocks, order, warm-up.

Where a publication gives several values (per model, or paper and scripts), the one taken is named. What is not taken
over: kernels, and k-means clusters (SVG-EAR), in whose place are this pack's blocks of about their size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..geometry.layout import PAPER_TILE
from ..geometry.order import Tile
from ..method.policy import Policy
from .profile import Profile
from .schedule import Schedule, constant
from .settings import Settings

# Runs of no more steps than this have no warm-up: one of four dense steps would be a quarter of the run.
NO_WARM_UP_STEPS = 8
# For schedules of calibrated masks, in which only "not dense" counts: they bring their densities.
ANY_DENSITY = 0.25


@dataclass(frozen=True)
class Published:
    """One system.

    Attributes:
        policy: its selection and tail; the density is the caller's.
        q_block, k_block, tile, order: see `Layout`.
        warm_up: share of the steps, from the noisiest, that runs dense.
        dense_layers: layers that always run dense; first_dense: the same as a share of the layers, see `Schedule`.
        calibrated: whether its masks come from a calibration and bring their densities.
    """

    policy: Policy
    q_block: int = 128
    k_block: int = 128
    tile: Tile | None = None
    order: str = "raster"
    warm_up: float = 0.0
    dense_layers: tuple[int, ...] = ()
    first_dense: float = 0.0
    calibrated: bool = False


def _dropping(method: str) -> Policy:
    return Policy(method=method, tail="none", spread=False, keep_own=False)


PUBLISHED: Mapping[str, Published] = {
    # arXiv 2505.14708; warm-up as Sparse VideoGen's paper, from which it is borrowed.
    "paper": Published(Policy.paper(), tile=PAPER_TILE, order="tile", warm_up=0.25),
    # arXiv 2502.01776; warm-up and dense layers of the released scripts for Wan (the paper: 25 % of the steps).
    "sparse videogen": Published(_dropping("svg"), warm_up=0.2, first_dense=0.03),
    # arXiv 2506.19852; 12 of 50 steps and layer 0, as released for Wan 2.1. The density replaces its decay.
    "radial attention": Published(_dropping("radial"), warm_up=0.24, dense_layers=(0,)),
    # arXiv 2502.21079; steps 1 to 9 of 50 dense, the first search in the tenth.
    "adaspa": Published(_dropping("adaspa"), q_block=64, k_block=64, warm_up=0.18),
    # arXiv 2603.08982; steps and layers of the scripts it builds on (SVG2, Wan), the mean as stand-in for what is
    # dropped, half of the budget promised by probability.
    "svg-ear": Published(
        Policy(method="ear", tail="mean", spread=False, keep_own=False, floor=0.5),
        k_block=64, order="tile", warm_up=0.2, first_dense=0.03,
    ),
    # arXiv 2603.05503; no step and no layer is excluded by hand.
    "calibatt": Published(_dropping("calibatt"), calibrated=True),
}  # fmt: skip


def published(
    name: str,
    density: float = 0.25,
    *,
    steps: int = 50,
    dense_layers: Sequence[int] = (),
    profile: Profile | None = None,
) -> Settings:
    """Settings of a published system.

    Args:
        name: a key of `PUBLISHED`.
        density: share of block pairs computed exactly, 0..1. Sparse VideoGen's bands and Radial attention's windows are
            made of whole blocks and come out denser; CalibAtt's masks have their own and do not ask for it.
        steps: of the run; `NO_WARM_UP_STEPS` or fewer have no warm-up.
        dense_layers: further layers that always run dense.
        profile: for CalibAtt, which needs one with calibrated masks.

    Raises:
        ValueError: for an unknown name, a density out of range, or a profile without the masks that are needed.
    """
    if name not in PUBLISHED:
        raise ValueError(f"unknown published system {name!r}: choose one of {', '.join(PUBLISHED)}")
    system = PUBLISHED[name]
    blocks, tile, order = (system.q_block, system.k_block), system.tile, system.order
    if system.calibrated:
        blocks, tile, order = rule_geometry(system.policy.method, blocks, tile, profile)
    return Settings(
        policy=system.policy,
        schedule=_schedule(system, density, steps, tuple(dense_layers)),
        auto_gain=False,
        q_block=blocks[0],
        k_block=blocks[1],
        tile=tile,
        order=order,
        profile=profile,
    )


def _schedule(system: Published, density: float, steps: int, dense_layers: tuple[int, ...]) -> Schedule:
    warm_up = system.warm_up if steps > NO_WARM_UP_STEPS else 0.0
    found = constant(ANY_DENSITY if system.calibrated else density, warmup=warm_up)
    layers = tuple(dict.fromkeys((*system.dense_layers, *dense_layers)))
    return Schedule(found.points, layers, first_dense=system.first_dense)


def rule_geometry(
    method: str, blocks: tuple[int, int], tile: Tile | None, profile: Profile | None
) -> tuple[tuple[int, int], Tile | None, str]:
    """Query and key block, tile and order for a selection rule: what was asked for where the rule does not mind.

    Sparse VideoGen's bands mean something in the raster order only. CalibAtt's masks hold for the blocks they were
    calibrated with.
    """
    if method == "svg":
        return blocks, None, "raster"
    if method == "calibatt" and profile is not None and profile.calibration is not None:
        layout = profile.calibration.layout
        return (layout.q_block, layout.k_block), layout.tile, layout.order
    return blocks, tile, "tile"
