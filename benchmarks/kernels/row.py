"""A row: one thing measured, as a child process prints it and the report reads it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Status = Literal["timed", "right", "unmeasured", "wrong", "failed", "skipped"]
Kind = Literal["ceiling", "dense", "ours", "peer", "check", "graph", "step", "health", "sweep"]
# Marks a row among whatever else a child writes.
MARK = "@row "
# What a child says when it has loaded, and when it has come to its end.
READY, DONE = "@ready", "@done"

WHOLE = "whole call"
PREPARE = "prepare"
PREPARE_BARE = "prepare without tail"
INT8 = "whole call, INT8 scores"
SELECT = "select"
ATTEND = "attend"
ATTEND_TAIL = "attend with tail"
SHUFFLED = "attend, lists shuffled"
GATHERED = "attend, K and V gathered"
COARSE = "attend, key blocks as large as query blocks"


@dataclass(frozen=True)
class Row:
    """One line of the results; None where something was not measured or does not apply.

    Attributes:
        kind: which part of the bench it belongs to.
        what: the call, part, backend, peer or check.
        status: `timed`; `right` (on a GPU, of what is not timed); `unmeasured` (ran and is right, but not on a GPU);
            `wrong` (ran, its result is off: no speed is told); `failed` (raised or never came back); `skipped` (cannot
            run here, the note says why).
        shape: name of the shape, empty where there is none.
        by: the variant of our kernel, or a peer's blocks.
        density: asked for.
        executed: share of the call's token pairs computed exactly.
        seconds: median; `spread`: (slowest - fastest) / median.
        flops: of the two products on exactly computed pairs; the tail is not counted.
        extra_bytes: peak memory beside the inputs, the output included.
        io_bytes: of one of q, k, v or the output.
        error: relative L2 against dense attention, on sampled rows of structured inputs.
        off: relative L2 against what the call should compute (its definition in float32), on sampled rows.
        value: of a ceiling, in the unit its name says.
        note: why, where there is something to say.
    """

    kind: Kind
    what: str
    status: Status
    shape: str = ""
    by: str = ""
    density: float | None = None
    executed: float | None = None
    seconds: float | None = None
    spread: float | None = None
    flops: float | None = None
    extra_bytes: float | None = None
    io_bytes: float | None = None
    error: float | None = None
    off: float | None = None
    value: float | None = None
    note: str = ""

    def without_speed(self, why: str) -> Row:
        """The same with its figures of speed withheld."""
        plain = asdict(self) | {"status": "wrong", "seconds": None, "spread": None, "value": None, "note": why}
        return Row(**plain)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON, which knows no infinity."""
        values = asdict(self).items()
        return {k: str(x) if isinstance(x, float) and not math.isfinite(x) else x for k, x in values}

    def brief(self) -> str:
        """For those who watch: what, where, and how long or why not."""
        where = ", ".join(
            filter(None, (self.by, self.shape, "" if self.density is None else f"density {self.density:g}"))
        )
        found = self.status if self.seconds is None or self.status != "timed" else f"{1e3 * self.seconds:.3f} ms"
        note = f", {self.note}" if self.note and self.status != "timed" else ""
        return f"{self.what}{f' ({where})' if where else ''}: {found}{note}"

    def line(self) -> str:
        return MARK + json.dumps(asdict(self))


def row_of(line: str) -> Row | None:
    """The row a line of a child's output carries, or None if it is something else (or cut short)."""
    if not line.startswith(MARK):
        return None
    try:
        found: dict[str, Any] = json.loads(line[len(MARK) :])
    except ValueError:
        return None
    known = {field.name for field in fields(Row)}
    return Row(**{name: value for name, value in found.items() if name in known})


def first_line(error: BaseException, length: int = 160) -> str:
    """An exception as one line of a table."""
    said = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {said}"[:length].replace("|", "/")
