"""What a disassembly says of the loops that take the time: how long they are, what goes on beside their products."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Loop:
    """One turn of an innermost loop, instruction by instruction, from its label to the branch back."""

    lines: tuple[str, ...]

    @property
    def counts(self) -> Counter[str]:
        """Instructions by their first word ("HGMMA"), without modifiers."""
        return Counter(_name(line).split(".")[0] for line in self.lines)

    def beside_products(self) -> tuple[str, ...]:
        """What stands between the wait that lets one product go on and the wait for all."""
        waits = [(i, n) for i, x in enumerate(self.lines) if (n := _outstanding(x)) is not None]
        for (start, some), (end, none) in zip(waits, waits[1:]):
            if (some, none) == (1, 0):
                return self.lines[start + 1 : end]
        return ()

    def written_too_early(self) -> tuple[str, ...]:
        """Instructions beside the products that write a register the last product reads or adds to."""
        taken: set[int] = set()
        beside = self.beside_products()
        for line in self.lines[: self.lines.index(beside[0])] if beside else ():
            if _name(line) == "WARPGROUP.ARRIVE":
                taken.clear()
            if found := re.search(r"HGMMA\.64x(\d+)x16\S* R(\d+), (?:R(\d+), )?", line):
                width, sums, first = int(found[1]), int(found[2]), found[3]
                # 64 rows by `width` columns of float32 over 128 threads; 64 by 16 of 16 bits.
                taken.update(range(sums, sums + width // 2))
                taken.update(range(int(first), int(first) + 4) if first else ())
        return tuple(line for line in beside if _written(line) & taken)


def product_loops(code: str) -> tuple[Loop, ...]:
    """The innermost loops with products on the tensor cores, each of different length once, the longest last."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    spans: list[tuple[int, int]] = []
    for line in code.splitlines():
        if found := re.match(r"\s*(\.L\w+):", line):
            labels[found[1]] = len(lines)
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            lines.append(found[1])
            target = re.search(r"\bBRA\S*\s.*?(\.L\w+)", lines[-1])
            if target and target[1] in labels:
                spans.append((labels[target[1]], len(lines)))
    inner = [(a, b) for a, b in spans if not any((c, d) != (a, b) and a <= c and d <= b for c, d in spans)]
    loops = {b - a: Loop(tuple(lines[a:b])) for a, b in inner}
    return tuple(loops[n] for n in sorted(loops) if loops[n].counts.keys() & {"HGMMA", "HMMA", "IMMA"})


def _name(line: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", line).split()[0]


def _outstanding(line: str) -> int | None:
    found = re.search(r"WARPGROUP\.DEPBAR\S* gsb0, 0x(\d+)", line)
    return None if found is None else int(found[1])


def _written(line: str) -> set[int]:
    """Registers an instruction writes: its first operand, if that is not an address or a value to store."""
    found = re.match(r"(?:@!?U?P\w+\s+)?(\w+)\S* (?:P\w+, )?R(\d+)\b", line)
    if found is None or found[1] in ("ST", "STS", "STG", "STL", "BAR", "SYNCS", "RED"):
        return set()
    wide = 4 if ".128" in line else 2 if ".64" in line or ".WIDE" in line else 1
    return set(range(int(found[2]), int(found[2]) + wide))
