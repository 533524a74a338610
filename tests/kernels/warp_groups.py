"""Runs what the compiler made of a warp-specialised kernel, as far as its warp groups meet: barriers and tiles.

The compiler's own text (TTGIR) of every group is executed with whole numbers only: tensors are left out, a tile in
shared memory is known by the load that filled it. Groups and copies advance in random order. Errors are: groups that
wait for each other, a tile that is read before it is there, and a copy onto a copy.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

# What function arguments are, all alike: no bound of a loop is taken from them.
ARGUMENT = 4096


class ProtocolError(AssertionError):
    """The warp groups do not keep to what they promised each other."""


class Op(NamedTuple):
    """A line of the text and the regions that follow it, by their heads."""

    text: str
    regions: dict[str, list[Op]]


class Load(NamedTuple):
    """A tile by where it comes from: descriptor, first row, and step of the loop (-1 outside)."""

    descriptor: str
    row: int | None
    step: int


class Read(NamedTuple):
    """A warp group's use of a tile: which load's, and the group's own step."""

    load: Load
    step: int


@dataclass
class Barrier:
    """An mbarrier: a phase ends when all arrivals and announced bytes are in; `parity` is that of the one under way."""

    arrivals: int
    missing: int
    bytes: int = 0
    parity: int = 0

    def arrive(self, count: int, announced: int = 0) -> None:
        self.missing -= count
        if self.missing < 0:
            raise ProtocolError("more arrivals than the barrier counts")
        self.take(-announced)

    def take(self, size: int) -> None:
        self.bytes -= size
        if self.missing == 0 and self.bytes == 0:
            self.missing, self.parity = self.arrivals, 1 - self.parity


Place = tuple[str, int]


@dataclass
class Machine:
    """One program: its barriers and tiles by allocation and index, copies on their way, and what groups read."""

    barriers: dict[Place, Barrier] = field(default_factory=dict)
    tiles: dict[Place, Load] = field(default_factory=dict)
    copies: list[tuple[Place, Load, Barrier, int]] = field(default_factory=list)
    reads: dict[str, list[Read]] = field(default_factory=dict)

    def land(self, which: int) -> None:
        place, load, barrier, size = self.copies.pop(which)
        self.tiles[place] = load
        barrier.take(size)


@dataclass
class Group:
    """One warp group.

    Attributes:
        values: numbers, and places of barriers and tiles, by name; what is neither is missing.
        steps: how often its loop runs.
    """

    machine: Machine
    name: str
    steps: int
    values: dict[str, int | Place | str]
    step: int = -1

    def execute(self, ops: list[Op]) -> Iterator[bool]:
        """Run; yields after everything another group may see, True where it cannot go on yet."""
        for op in ops:
            if "= scf.for " in op.text:
                yield from self._loop(op)
            elif op.regions and '"tt.reduce"' not in op.text:
                raise NotImplementedError(f"control flow: {op.text}")
            elif not op.regions:
                yield from self._one(op.text)

    def _loop(self, op: Op) -> Iterator[bool]:
        ((_, body),) = op.regions.items()
        result, head = op.text.split(" = scf.for ", 1)
        counter, first, _, stride = names(head)[:4]
        carried = re.findall(r"(%\w+) = (%[\w#]+)", head.split("iter_args(")[1].split(") -> ")[0])
        now = [self.values.get(x) for _, x in carried]
        for step in range(self.steps):
            self.step = step
            # Where a loop begins may come from data, which is not here.
            begins = self.values.get(first, 0)
            assert isinstance(begins, int), first
            self._set(counter, begins + step * self._number(stride))
            for (name, _), value in zip(carried, now, strict=True):
                self._set(name, value)
            yield from self.execute(body[:-1])
            now = [self.values.get(x) for x in names(body[-1].text)]
        self.step = -1
        result = result.split(":")[0]
        for i, value in enumerate(now):
            self._set(result if len(now) == 1 else f"{result}#{i}", value)

    def _one(self, text: str) -> Iterator[bool]:
        result, call = text.split(" = ", 1) if re.match(r"%\w+ = ", text) else ("", text)
        kind, used = call.split(" ")[0].split("(")[0], names(call.split(" : ")[0])
        if kind == "ttg.local_alloc" and not used:
            self._set(result, result)
        elif kind == "ttg.memdesc_index":
            self._set(result, (str(self.values[used[0]]), self._number(used[1])))
        elif kind == "ttg.memdesc_trans":
            self._set(result, self.values[used[0]])
        elif kind == "ttng.init_barrier":
            count = _amount(call)
            self.machine.barriers[self._place(used[0])] = Barrier(count, count)
        elif kind == "ttng.wait_barrier":
            barrier, parity = self._barrier(used[0]), self._number(used[1]) & 1
            while barrier.parity == parity:
                yield True
        elif kind == "ttng.arrive_barrier":
            self._barrier(used[0]).arrive(_amount(call))
            yield False
        elif kind == "ttng.barrier_expect":
            self._barrier(used[0]).arrive(1, announced=_amount(call))
            yield False
        elif kind == "ttng.async_tma_copy_global_to_local":
            self._fetch(call, used)
            yield False
        elif kind in ("ttng.warp_group_dot", "ttg.local_load"):
            if "isAsync" in call:
                raise NotImplementedError("products that go on behind their line")
            for name in used:
                if isinstance(self.values.get(name), tuple):
                    self._read(self._place(name))
            yield False
        elif kind.startswith("arith."):
            self._set(result, _arithmetic(kind, call, [self.values.get(x) for x in used]))
        elif kind == "tt.get_program_id":
            self._set(result, 0)

    def _fetch(self, call: str, used: list[str]) -> None:
        descriptor, row, place = used[0], self.values.get(used[1]), self._place(used[-3])
        if any(under_way == place for under_way, *_ in self.machine.copies):
            raise ProtocolError(f"a copy onto a copy under way, step {self.step}")
        self.machine.tiles.pop(place, None)
        load = Load(re.sub(r"_\d+$", "", descriptor[1:]), row if isinstance(row, int) else None, self.step)
        extents, bits = re.findall(r"!ttg\.memdesc<((?:\d+x)+)[a-z]+(\d+),", call)[-1]
        size = int(bits) // 8
        for extent in extents.split("x")[:-1]:
            size *= int(extent)
        self.machine.copies.append((place, load, self._barrier(used[-2]), size))

    def _read(self, place: Place) -> None:
        load = self.machine.tiles.get(place)
        if load is None:
            raise ProtocolError(f"{self.name} reads a tile that is not there, step {self.step}")
        self.machine.reads.setdefault(self.name, []).append(Read(load, self.step))

    def _set(self, name: str, value: int | Place | str | None) -> None:
        if value is None:
            self.values.pop(name, None)
        else:
            self.values[name] = value

    def _number(self, name: str) -> int:
        value = self.values[name]
        assert isinstance(value, int), name
        return value

    def _place(self, name: str) -> Place:
        value = self.values[name]
        assert isinstance(value, tuple), name
        return value

    def _barrier(self, name: str) -> Barrier:
        return self.machine.barriers[self._place(name)]


def run_program(ttgir: str, steps: int, seed: int) -> Machine:
    """Run one program whose loops take `steps` steps, in an order chosen by `seed`.

    Raises:
        ProtocolError: if the groups stop for good or a tile is not what it should be.
        NotImplementedError: if the text holds what this does not know.
    """
    head, body = _parsed(ttgir)
    before = Group(Machine(), "before", steps, dict.fromkeys(re.findall(r"(%\w+): i32", head), ARGUMENT))
    specialised = [op for op in body if op.text.startswith("ttg.warp_specialize")]
    if len(specialised) != 1:
        raise ProtocolError("the kernel is not specialised")
    for _ in before.execute(body[: body.index(specialised[0])]):
        raise ProtocolError("groups meet before they part")
    passed = names(specialised[0].text.split(" attributes")[0])
    groups = {}
    for region, ops in specialised[0].regions.items():
        name, values = re.split(r"\W", region)[0], dict(before.values)
        if name != "default":
            inside = re.findall(r"(%\w+): ", region)
            values = {here: before.values[there] for here, there in zip(inside, passed, strict=True) if there in values}
        groups[name] = Group(before.machine, name, steps, values).execute(ops)
    _race(groups, before.machine, random.Random(seed))
    return before.machine


def _race(groups: dict[str, Iterator[bool]], machine: Machine, chance: random.Random) -> None:
    """Let groups and copies advance, one at a time, until all are done; who is slow changes now and then."""
    stuck: set[str] = set()
    speeds: dict[str, float] = {}
    while groups or machine.copies:
        able = [name for name in groups if name not in stuck] + ["copy"] * bool(machine.copies)
        if not able:
            raise ProtocolError(f"a deadlock of {', '.join(groups)}")
        if chance.random() < 0.02 or not speeds:
            speeds = {name: 10.0 ** chance.uniform(-3, 0) for name in (*groups, "copy")}
        (turn,) = chance.choices(able, [speeds[name] for name in able])
        if turn == "copy":
            machine.land(chance.randrange(len(machine.copies)))
            stuck.clear()
            continue
        waits = next(groups[turn], None)
        if waits:
            stuck.add(turn)
        else:
            stuck.clear()
        if waits is None:
            del groups[turn]


@functools.cache
def names(text: str) -> list[str]:
    """The values a line mentions."""
    return re.findall(r"%[\w#]+", text)


def _amount(call: str) -> int:
    return int(call.split(", ")[1].split()[0])


def _arithmetic(kind: str, call: str, values: list[int | Place | str | None]) -> int | None:
    if kind == "arith.constant":
        word = call.split()[1]
        return {"true": 1, "false": 0}.get(word, int(word) if re.fullmatch(r"-?\d+", word) else None)
    numbers = [x for x in values if isinstance(x, int)]
    if len(numbers) < len(values) or "tensor<" in call:
        return None
    a, b = (*numbers, 0)[:2]
    if kind == "arith.select":
        return numbers[1] if a else numbers[2]
    if kind == "arith.cmpi":
        word = call.split()[1].strip(",")
        return int({"slt": a < b, "sge": a >= b, "sgt": a > b, "sle": a <= b, "eq": a == b, "ne": a != b}[word])
    if kind in ("arith.extsi", "arith.extui", "arith.trunci"):
        return a & 1 if call.endswith("i1") else a
    found = {"arith.addi": a + b, "arith.subi": a - b, "arith.muli": a * b, "arith.andi": a & b, "arith.xori": a ^ b}
    found |= {"arith.minsi": min(a, b)}
    if b:
        found |= {"arith.divui": a // b, "arith.divsi": a // b, "arith.remsi": a % b, "arith.remui": a % b}
    return found.get(kind)


@functools.lru_cache(maxsize=1)
def _parsed(ttgir: str) -> tuple[str, list[Op]]:
    """Head and body of the one function."""
    lines = list(_lines(ttgir))
    head = next(i for i, text in enumerate(lines) if text.startswith("tt.func public"))
    return lines[head], _nested(lines, head + 1)[0]


def _lines(ttgir: str) -> Iterator[str]:
    """Lines without locations and the group numbers the compiler noted."""
    for text in ttgir.splitlines():
        text = re.sub(r'loc\((#loc\d*|"[^"]*"\(#loc\d*\)|"[^"]*":\d+:\d+|callsite\([^()]*\))\)', "", text)
        text = re.sub(r"async_task_id = array<i32: [\d, ]+>(, )?", "", text).replace(" {}", "")
        text = re.sub(r" +", " ", text).strip()
        if text and not text.startswith("#"):
            yield text


def _nested(lines: list[str], i: int) -> tuple[list[Op], int]:
    """The operations from line i to the brace that closes them, and the line of that brace."""
    found: list[Op] = []
    while not lines[i].startswith("}"):
        text, regions = lines[i], {}
        if text.startswith("ttg.warp_specialize"):
            # Its regions have lines of their own: default, partition0, partition1.
            while lines[i + 1].endswith("{") and lines[i + 1].startswith(("default", "partition")):
                head = lines[i + 1]
                regions[head], i = _nested(lines, i + 2)
        elif text.endswith("{"):
            regions[text], i = _nested(lines, i + 1)
        found.append(Op(text, regions))
        i += 1
    return found, i
