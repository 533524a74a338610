"""Tuning tables: configurations that a sweep found on a device of one architecture, as data that `configs.py` reads.

``python run.py bench gpu`` writes `tuned/ARCHITECTURE.json`. What is read is checked and bounded, since a table is data
and may come from anywhere: one with anything amiss counts as none, with a word in the log, and the fixed rows serve. So
does one that another Triton was measured with: what compiles well there may spill here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

FORMAT = 1
FOLDER = Path(__file__).resolve().parent / "tuned"
# A table is a few hundred bytes.
MOST_BYTES = 16_384
MOST_TEXT = 400
HEAD_SIZES = ("64", "128")
# What each number of `configs.AttendConfig` may be.
ALLOWED: Mapping[str, tuple[int, ...]] = {
    "block_m": (32, 64, 128),
    "block_n": (16, 32, 64, 128),
    "block_g": (16, 32, 64),
    "warps": (4, 8, 16),
    "stages": tuple(range(1, 9)),
    "tail_stages": (1, 2, 3, 4),
}
_TEXTS = ("architecture", "device", "triton", "conditions")
_KEYS = {"format", "attend", "gain", *_TEXTS}


@dataclass(frozen=True)
class TuningTable:
    """What a sweep found.

    Attributes:
        architecture: as `configs.architecture_of` names it.
        device: the one that was measured, for people.
        triton: its version then.
        conditions: of the measurement, for people.
        attend: head size -> the numbers of an `AttendConfig` by name.
        gain: head size -> time with the fixed row over time with this one.

    Raises:
        ValueError: if a number is out of bounds or a text too long; the message says which.
    """

    architecture: str
    device: str
    triton: str
    conditions: str
    attend: Mapping[int, Mapping[str, int]]
    gain: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _TEXTS:
            said = getattr(self, name)
            if not isinstance(said, str) or not 0 < len(said) <= MOST_TEXT:
                raise ValueError(f"{name} must be a text of 1 to {MOST_TEXT} characters")
        if set(self.gain) - set(self.attend):
            raise ValueError("gain speaks of a head size that attend has not")
        if any(isinstance(x, bool) or not isinstance(x, (int, float)) or not 0 < x < 100 for x in self.gain.values()):
            raise ValueError("gain must be numbers between 0 and 100")
        for dim, numbers in self.attend.items():
            if str(dim) not in HEAD_SIZES:
                raise ValueError(f"head size {dim} is none of {', '.join(HEAD_SIZES)}")
            _check_numbers(numbers, dim)

    def to_json(self) -> str:
        plain = {"format": FORMAT} | {name: getattr(self, name) for name in _TEXTS}
        plain |= {name: {str(dim): x for dim, x in getattr(self, name).items()} for name in ("attend", "gain")}
        return json.dumps(plain, indent=2) + "\n"


def _check_numbers(numbers: object, dim: int) -> None:
    if not isinstance(numbers, Mapping) or set(numbers) != set(ALLOWED):
        raise ValueError(f"head size {dim} must have exactly {', '.join(ALLOWED)}")
    for name, allowed in ALLOWED.items():
        if type(numbers[name]) is not int or numbers[name] not in allowed:
            raise ValueError(f"head size {dim}: {name} must be one of {allowed}, not {numbers[name]!r:.20}")


def parse(text: str) -> TuningTable:
    """A table from its JSON.

    Raises:
        ValueError: if it is no table of this format, or not within its bounds.
    """
    try:
        found: Any = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict) or set(found) != _KEYS:
        raise ValueError(f"a table has exactly the keys {', '.join(sorted(_KEYS))}")
    if type(found["format"]) is not int or found["format"] != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    sizes: dict[str, dict[int, Any]] = {}
    for name in ("attend", "gain"):
        if not isinstance(found[name], dict) or set(found[name]) - set(HEAD_SIZES):
            raise ValueError(f"{name} must go by head sizes, of {', '.join(HEAD_SIZES)}")
        sizes[name] = {int(dim): value for dim, value in found[name].items()}
    texts = {name: found[name] for name in _TEXTS}
    return TuningTable(**texts, attend=sizes["attend"], gain=sizes["gain"])


def table_file(architecture: str, folder: Path = FOLDER) -> Path:
    """Where an architecture's table lies, or would."""
    return folder / f"{architecture}.json"


def read_table(architecture: str, folder: Path = FOLDER) -> TuningTable | None:
    """An architecture's table; None where there is none, with a word in the log where there is one that will not do."""
    path = table_file(architecture, folder)
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES} bytes")
        table = parse(path.read_text(encoding="utf-8"))
        if table.architecture != architecture:
            raise ValueError(f"it is of {table.architecture:.20}")
    except (OSError, ValueError) as error:
        log.warning("DraftAttention: the tuning table %s is not used: %s", path.name, error)
        return None
    return table


def write_table(table: TuningTable, folder: Path = FOLDER) -> Path:
    """Put a table where `read_table` finds it; the file is whole at any time."""
    path = table_file(table.architecture, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(table.to_json(), encoding="utf-8")
    partial.replace(path)
    return path


def same_triton(one: str, other: str) -> bool:
    """Whether two versions of Triton compile alike, as far as a table goes: the first two numbers agree."""
    return one.split(".")[:2] == other.split(".")[:2]
