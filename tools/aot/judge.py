"""What a compiled kernel is judged by: what fits, what must be in it, and the stack that is known of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from draftattention.kernels.configs import SHARED_LIMIT
from tools.aot.compile import Compiled

KNOWN_FILE = Path(__file__).with_name("known.json")

# Triton version -> target -> case -> bytes of stack.
Known = Mapping[str, Mapping[str, Mapping[str, int]]]


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a binary, or what is known to be less than right with it.

    Attributes:
        problems: reasons not to ship it.
        known: bytes of stack per thread that are on the list.
    """

    problems: tuple[str, ...] = ()
    known: int = 0

    def __str__(self) -> str:
        return "; ".join(self.problems) or (f"known stack, {self.known} B" if self.known else "ok")


def load_known() -> Known:
    """The list of known stack: cases for which no configuration without any was found."""
    known: Known = json.loads(KNOWN_FILE.read_text(encoding="utf-8"))
    return known


def save_known(version: str, results: Iterable[Compiled]) -> None:
    """Make the stack of these results the list for a Triton version."""
    listed: dict[str, dict[str, int]] = {}
    for result in results:
        if result.stack:
            listed.setdefault(result.target, {})[result.name] = result.stack
    known = {**load_known(), version: listed}
    KNOWN_FILE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def judge(result: Compiled, listed: int = 0) -> Verdict:
    """Problems of a binary, given the bytes of stack that are listed for it. The list has to be exact both ways."""
    if result.error is not None:
        return Verdict((f"does not compile: {result.error}",))
    problems = []
    limit = SHARED_LIMIT[result.target]
    if result.shared > limit:
        problems.append(f"{result.shared} B of shared memory, the limit is {limit}")
    if result.stack > listed:
        problems.append(f"{result.stack} B of stack per thread" + (f", {listed} B are known" if listed else ""))
    if result.stack < listed:
        problems.append(f"{listed} B of stack are listed as known, it has {result.stack} B: shorten the list")
    problems += [f"no {name} instruction" for name in result.wants if not result.instructions.get(name)]
    return Verdict(tuple(problems), listed if not problems else 0)
