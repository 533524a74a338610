"""What the kernel bench runs: shapes, jobs in the order of their worth, and what each is expected to take.

A job is one process. Its limit is what stops it; its estimate only tells a reader, and never decides what is run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from draftattention.draftattn_core import Layout, TokenGrid
from draftattention.draftattn_core.method.policy import TailName

DENSITIES = (0.5, 0.25, 0.1)
# What is timed, and what else is compared with it by its error.
TAIL: TailName = "linear1"
OTHER_TAILS: tuple[TailName, ...] = ("none", "mean", "linear0", "linear2")


@dataclass(frozen=True)
class Shape:
    """One attention call: token grid, extra tokens after it, heads, head size, blocks."""

    name: str
    grid: tuple[int, int, int]
    extra: int
    heads: int
    dim: int
    q_block: int = 128
    k_block: int = 64

    @property
    def layout(self) -> Layout:
        return Layout(TokenGrid(*self.grid), 0, self.extra, self.q_block, self.k_block)

    @property
    def tokens(self) -> int:
        t, h, w = self.grid
        return t * h * w + self.extra

    @property
    def flops(self) -> float:
        """Of the two products of a dense call."""
        return 4.0 * self.tokens**2 * self.dim * self.heads

    @property
    def bytes(self) -> int:
        """Of q (or k, v, the output) at two bytes an element."""
        return 2 * self.tokens * self.dim * self.heads

    def with_blocks(self, q_block: int, k_block: int) -> Shape:
        return replace(self, q_block=q_block, k_block=k_block)


SHAPES = (
    Shape("Wan 14B 720p", (21, 45, 80), 0, 40, 128),
    Shape("HunyuanVideo 1.5 720p", (31, 45, 80), 1000, 16, 128),
    Shape("HunyuanVideo 720p", (33, 45, 80), 256, 24, 128),
    Shape("Wan 14B 480p", (21, 30, 52), 0, 40, 128),
    Shape("head size 64", (21, 30, 52), 0, 24, 64),
)
# Those the end-to-end targets are about: everything the targets compare is timed there first.
FIRST_SHAPES = SHAPES[:2]
TARGET_SHAPES = tuple(shape.name for shape in SHAPES[:3])
# Stand-ins of the dry run: ragged blocks, a border inside a block, text.
TINY = (
    Shape("tiny video", (3, 5, 7), 0, 2, 64, 32, 16),
    Shape("tiny video with text", (2, 5, 9), 21, 2, 128, 32, 16),
)
TINY_DENSITIES = (0.5, 0.25)


@dataclass(frozen=True)
class Job:
    """One process of the bench.

    Attributes:
        name: for people.
        work: what the child is told, plain values for JSON; "kind" says which part of the bench it is.
        estimate: seconds it is expected to take, by `estimate`.
        limit: seconds after which it is stopped.
    """

    name: str
    work: dict[str, Any]
    estimate: float
    limit: float


@dataclass(frozen=True)
class Effort:
    """How long the bench measures.

    Attributes:
        seconds: per measurement, beside its warm-up.
        least, most: runs of a measurement.
        minutes: when the bench as a whole stops.
        everywhere: whether peers and opt-in variants are timed on every shape, or on the first ones only (the peers
            that no target names: on the very first).
    """

    seconds: float
    least: int
    most: int
    minutes: float
    everywhere: bool


QUICK = Effort(0.3, 3, 20, 8.5, everywhere=False)
FULL = Effort(1.5, 7, 60, 40.0, everywhere=True)
# The peers the targets name.
TARGET_PEERS = ("comfy_kitchen", "FlexAttention")

# Assumptions of the estimate, not measurements: TFLOP/s of each kind of kernel, seconds of a process's start (imports,
# device, inputs), of compiling.
ASSUMED_TFLOPS = {"cuDNN": 550.0, "flash": 330.0, "efficient": 220.0, "ours": 350.0, "peer": 350.0}
START = 9.0
# A process that checks compiles a dozen kernels, and leaves their binaries to those that time.
CHECKING_SECONDS = 40.0
# Of one kernel of ours, and of a peer for one kind of blocks.
COMPILE = {"ours": 4.0, "peer": 20.0}
# Products on sampled rows in float32.
DEFINITION = 0.4
# A launch, and the gigabyte written before each timed run.
LAUNCH, FILL = 0.4e-3, 0.4e-3
# Besides those that are timed: one to compare, two to warm up and to choose how many, one for its memory.
OTHER_RUNS = 4


def once(flops: float, kind: str) -> float:
    """Seconds of one run."""
    return flops / (ASSUMED_TFLOPS[kind] * 1e12) + LAUNCH


def measuring(flops: float, kind: str, effort: Effort) -> float:
    """Seconds of one measurement, all its runs."""
    each = once(flops, kind) + FILL
    runs = min(effort.most, max(effort.least, int(effort.seconds / each)))
    return runs * each + OTHER_RUNS * once(flops, kind)


def dense_job(shapes: tuple[Shape, ...], effort: Effort) -> Job:
    backends = ("cuDNN", "flash", "efficient")
    seconds = START + sum(
        DEFINITION + sum(measuring(shape.flops, name, effort) for name in backends) for shape in shapes
    )
    return _job("ceilings and dense attention", {"kind": "dense", "shapes": _plain(shapes)}, seconds, effort)


def ours_job(
    shape: Shape,
    variant: str,
    effort: Effort,
    densities: tuple[float, ...] = DENSITIES,
    *,
    required: bool = True,
    compiles: bool = True,
) -> Job:
    """Our kernels at one shape.

    Args:
        required: whether it is the variant with which preparation, selection and the other tails are measured.
        compiles: whether no job before it has compiled the kernels that the checks do not need.
    """
    # The call, attend with and without tail, of shuffled lists, of large blocks; of gathered K and V.
    measurements, calls = (6, 2 + len(OTHER_TAILS)) if required else (5, 2)
    # prepare twice, and select: their time does not follow the flops.
    parts = 3 * measuring(0.0, "ours", effort) if required else 0.0
    # attend and prepare of each other tail but none, and of large blocks.
    kernels = 2 * len(OTHER_TAILS) if compiles and required else 2 if compiles else 0
    seconds = START + COMPILE["ours"] * kernels
    for density in densities:
        flops = shape.flops * density
        seconds += measurements * measuring(flops, "ours", effort) + parts
        # Dense attention, the whole call, attend with and without tail, large blocks.
        seconds += calls * once(flops, "ours") + 5 * DEFINITION
    work = {"kind": "ours", "shapes": _plain((shape,)), "densities": list(densities), "variant": variant}
    return _job(f"ours, {variant}, {shape.name}", work, seconds, effort)


def peer_job(
    name: str,
    target: str,
    parts: dict[str, int],
    effort: Effort,
    shapes: tuple[Shape, ...],
    densities: tuple[float, ...] = DENSITIES,
) -> Job:
    """Of one package: `parts` says how many of its peers of each kind, `dense` or `peer`, are timed."""
    seconds = START + COMPILE["peer"] * sum(parts.values())
    for shape in shapes:
        for kind, count in parts.items():
            for density in (1.0,) if kind == "dense" else densities:
                seconds += count * (measuring(shape.flops * density, "peer", effort) + 2 * DEFINITION)
    work = {
        "kind": "peer",
        "peer": target,
        "parts": list(parts),
        "shapes": _plain(shapes),
        "densities": list(densities),
    }
    label = "dense attention by" if list(parts) == ["dense"] else "peer,"
    where = f" on {len(shapes)} shapes" if len(shapes) > 1 else f", {shapes[0].name}"
    return _job(f"{label} {name}{where}", work, seconds, effort)


def _plain(shapes: tuple[Shape, ...]) -> list[dict[str, Any]]:
    return [asdict(shape) for shape in shapes]


def shape_from(plain: dict[str, Any]) -> Shape:
    return Shape(**{**plain, "grid": tuple(plain["grid"])})


def _job(name: str, work: dict[str, Any], seconds: float, effort: Effort) -> Job:
    work |= {"effort": {"seconds": effort.seconds, "least": effort.least, "most": effort.most}}
    # Thrice what is expected: slower cards and cold caches are no deadlock.
    return Job(name, work, seconds, max(60.0, 3.0 * seconds))


def describe(checks: int, check_limit: float, at_once: int, jobs: list[Job], effort: Effort) -> str:
    """What `--plan` prints."""
    rounds = -(-checks // at_once)
    width = max(44, *(len(job.name) + 1 for job in jobs))
    lines = [
        f"Stops after {effort.minutes:g} minutes whatever happens: every process is stopped at its own limit or at the",
        "end of that time, whichever comes first, and what did not fit is named in the results.",
        "",
        f"{'job':{width}}{'expected s':>12}{'limit s':>10}",
        f"{f'{checks} checks, {at_once} at once':{width}}{CHECKING_SECONDS * rounds:12.0f}{check_limit * rounds:10.0f}",
    ]
    lines += [f"{job.name:{width}}{job.estimate:12.0f}{job.limit:10.0f}" for job in jobs]
    total = CHECKING_SECONDS * rounds + sum(job.estimate for job in jobs)
    lines.append(f"{'sum of what is expected':{width}}{total:12.0f}")
    lines.append(f"{'less what starts up beside another':{width}}{total - START * max(0, len(jobs) - 1):12.0f}")
    assumed = ", ".join(f"{name} {rate:g}" for name, rate in ASSUMED_TFLOPS.items())
    lines += ["", f"Assumed, not measured: TFLOP/s {assumed}; {START:g} s to start a process;"]
    lines += ["compiling a kernel " + ", ".join(f"{name} {seconds:g} s" for name, seconds in COMPILE.items()) + "."]
    return "\n".join(lines)
