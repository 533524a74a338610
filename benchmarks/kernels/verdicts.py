"""The targets, and what the rows say about each: met, missed by how much, or unmeasured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks import limits
from benchmarks.kernels import row as names
from benchmarks.kernels.plan import DENSITIES, SHAPES, TAIL, TARGET_SHAPES
from benchmarks.kernels.row import Row

TARGET_DEVICE = "H200"
ATTEND_LIMIT, PREPARATION_LIMIT, MEMORY_LIMIT = limits.ATTEND, limits.PREPARATION, 1.0
# Executed densities this close, as a share of ours, count as equal: a peer of its own selection meets ours only nearly.
EQUAL_DENSITY = 0.03


@dataclass(frozen=True)
class Verdict:
    """One target: `met` is None where it is unmeasured, and `said` says on what the verdict rests."""

    target: str
    met: bool | None
    said: str

    @property
    def word(self) -> str:
        return "unmeasured" if self.met is None else "met" if self.met else "missed"


class Table:
    """Timed rows, looked up."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = [row for row in rows if row.status == "timed"]

    def best_dense(self, shape: str) -> Row | None:
        found = [row for row in self.rows if row.kind == "dense" and row.shape == shape and row.seconds]
        return min(found, key=lambda row: row.seconds or 0.0, default=None)

    def find(self, what: str, shape: str, density: float, by: str | None = None) -> Row | None:
        for row in self.rows:
            if (row.what, row.shape, row.density) == (what, shape, density) and by in (None, row.by):
                return row
        return None

    def seconds(self, what: str, shape: str, density: float, by: str | None = None) -> float | None:
        row = self.find(what, shape, density, by)
        return None if row is None else row.seconds

    def ratio(self, row: Row) -> float | None:
        """Seconds over executed density times the best dense call's."""
        dense = self.best_dense(row.shape)
        if row.seconds is None or not row.executed or dense is None or not dense.seconds:
            return None
        return row.seconds / (row.executed * dense.seconds)

    def tail_seconds(self, shape: str, density: float, by: str) -> tuple[float, float] | None:
        """What the tail adds to attend, and to prepare."""
        found = [
            self.seconds(names.ATTEND_TAIL, shape, density, by),
            self.seconds(names.ATTEND, shape, density, by),
            self.seconds(names.PREPARE, shape, density),
            self.seconds(names.PREPARE_BARE, shape, density),
        ]
        if any(value is None for value in found):
            return None
        with_tail, without, prepare, bare = (value or 0.0 for value in found)
        return with_tail - without, prepare - bare


@dataclass(frozen=True)
class _Figure:
    value: float
    where: str


def verdicts(rows: Iterable[Row], device: str, variant: str) -> list[Verdict]:
    """A verdict per target for one variant of `attend`."""
    rows = list(rows)
    table = Table(rows)
    cells = [(shape, density) for shape in TARGET_SHAPES for density in DENSITIES]
    attend, preparation, tail, memory = [], [], [], []
    for shape, density in cells:
        where = f"{shape}, density {density:g}"
        dense = table.best_dense(shape)
        row = table.find(names.ATTEND, shape, density, variant)
        ratio = None if row is None else table.ratio(row)
        if ratio is not None:
            attend.append(_Figure(ratio, where))
        prepare, select = (table.seconds(what, shape, density) for what in (names.PREPARE, names.SELECT))
        if dense is not None and dense.seconds and prepare is not None and select is not None:
            preparation.append(_Figure((prepare + select) / dense.seconds, where))
        added = table.tail_seconds(shape, density, variant)
        if dense is not None and dense.seconds and added is not None:
            # Its statistics are made in prepare, whose limit counts them.
            tail.append(_Figure(added[0] / (dense.seconds * _tail_share(shape, density)), where))
        whole = table.find(names.WHOLE, shape, density, variant)
        if whole is not None and whole.extra_bytes is not None and whole.io_bytes:
            memory.append(_Figure((whole.extra_bytes - whole.io_bytes) / (2.0 * whole.io_bytes), where))
    count = len(cells)
    return [
        _worst(f"attend at most {ATTEND_LIMIT} x density x best dense", attend, ATTEND_LIMIT, count, device, "x"),
        _worst(
            f"prepare + select at most {PREPARATION_LIMIT:.0%} of the dense call",
            preparation,
            PREPARATION_LIMIT,
            count,
            device,
            "%",
        ),
        _worst(
            f"the linear tail in attend at most {ATTEND_LIMIT} x its products", tail, ATTEND_LIMIT, count, device, "x"
        ),
        _worst("extra memory beside the output at most K + V once", memory, MEMORY_LIMIT, count, device, "x K + V"),
        _against(table, variant, "FlexAttention", names.ATTEND, "128/64", device),
        _against(table, variant, "comfy_kitchen.sol_attn", names.WHOLE, None, device),
        _captured(rows, variant),
    ]


def _tail_share(name: str, density: float) -> float:
    """Products that the tail that is timed needs at a density as a share of those of a dense call."""
    shape = next(shape for shape in SHAPES if shape.name == name)
    return limits.tail_share(shape.layout.grid.tokens, shape.tokens, shape.dim, TAIL, shape.k_block, density)


def _form(value: float, unit: str) -> str:
    return f"{100 * value:.1f} {unit}" if unit == "%" else f"{value:.2f} {unit}"


def _on(device: str) -> str:
    return "" if TARGET_DEVICE in device else f"; measured on {device}, the target is for an {TARGET_DEVICE}"


def _worst(target: str, figures: list[_Figure], limit: float, count: int, device: str, unit: str) -> Verdict:
    if not figures:
        return Verdict(target, None, "no such row was timed")
    worst = max(figures, key=lambda figure: figure.value)
    best = min(figures, key=lambda figure: figure.value)
    met = worst.value <= limit
    said = f"worst {_form(worst.value, unit)} ({worst.where}), best {_form(best.value, unit)}"
    if not met:
        said += f", over the limit by {_form(worst.value - limit, unit)}"
    if len(figures) < count:
        said += f"; {len(figures)} of {count} cells timed"
        if met:
            return Verdict(target, None, "within the limit where timed: " + said + _on(device))
    return Verdict(target, met, said + _on(device))


def _against(table: Table, variant: str, peer: str, what: str, by: str | None, device: str) -> Verdict:
    """Faster than a peer at equal executed density, with an error no larger, wherever both were timed."""
    same_blocks = what == names.ATTEND
    target = f"faster than {peer} at equal executed density" + (", the same blocks" if same_blocks else ", lower error")
    faster, lower, said, unequal = True, True, [], []
    for row in table.rows:
        if row.kind != "peer" or row.what != peer or by not in (None, row.by) or row.density is None:
            continue
        ours = table.find(what, row.shape, row.density, variant)
        whole = table.find(names.WHOLE, row.shape, row.density, variant)
        if ours is None or not ours.seconds or not row.seconds or whole is None:
            continue
        where = f"{row.shape} at {row.density:g}"
        if not _equal(row.executed, ours.executed):
            unequal.append(f"{where} (its {row.executed or 0.0:.3f}, ours {ours.executed or 0.0:.3f})")
            continue
        speed = row.seconds / ours.seconds
        faster &= speed > 1.0
        line = f"{where}: {speed:.2f} x its speed"
        if whole.error is not None and row.error is not None:
            lower &= whole.error < row.error
            line += f", error {whole.error:.4f} against {row.error:.4f}"
        said.append(line)
    left_out = [f"left out, executed densities differ: {', '.join(unequal)}"] if unequal else []
    if not said:
        return Verdict(target, None, "; ".join(["not both timed at equal executed density", *left_out]))
    return Verdict(target, faster and lower, "; ".join([*said, *left_out]) + _on(device))


def _equal(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and abs(a - b) <= EQUAL_DENSITY * b


def _captured(rows: list[Row], variant: str) -> Verdict:
    """Whether a whole call can be captured in a CUDA graph and gives the same bits when replayed on other inputs."""
    target = "the whole call can be captured in a CUDA graph"
    found = [row for row in rows if row.kind == "graph" and row.by == variant]
    ran = [row for row in found if row.status in ("right", "wrong", "failed")]
    if not ran:
        return Verdict(target, None, "; ".join(dict.fromkeys(row.note for row in found)) or "not tried")
    bad = [f"{row.what}: {row.note}" for row in ran if row.status != "right"]
    return Verdict(target, not bad, "; ".join(bad) or f"{len(ran)} calls replayed bit for bit")
