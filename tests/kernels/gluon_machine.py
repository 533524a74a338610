"""Runs a Gluon kernel of ours on the CPU: its own Python source, with a machine of plain tensors behind the language.

Triton's interpreter does not take Gluon. Here the groups of warps are threads of which one runs at a time; which one,
when a copy lands and when a product is computed is drawn at random. Products read shared memory when they are
computed, not when they are asked for; a copy takes its tile's old contents away at once. Errors are: groups that wait
for each other, a copy onto a tile that a product under way reads, a product's result used before it is waited for.
Layouts of registers, the barriers among a group's own warps, and the assembler are left out (`test_gluon.py` reads
those from the binary).
"""

from __future__ import annotations

import ast
import inspect
import random
import sys
import threading
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon._runtime import GluonJITFunction
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from tests.kernels.warp_groups import Barrier, ProtocolError

PANEL = 64

# A call in a kernel: name of the function and line.
Site = tuple[str, int]


class Scalar(int):
    """A number with the one method that kernels call on numbers."""

    def to(self, dtype: torch.dtype) -> int:
        return self


@dataclass(frozen=True)
class Pointer:
    """Elements of a tensor's storage from an offset on; the offset may be a tensor of offsets."""

    storage: Tensor
    offset: Any = 0

    def __add__(self, more: Any) -> Pointer:
        return Pointer(self.storage, self.offset + more)


@dataclass(frozen=True)
class Tile:
    """Shared memory: numbers in the order in which they lie, 64 columns side by side, panel behind panel.

    The order within eight rows, which the hardware permutes, is the same for every view and left out.
    """

    memory: Tensor
    first: int
    shape: tuple[int, ...]
    turned: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return self.memory.dtype

    @property
    def span(self) -> range:
        return range(self.first, self.first + _size(self.shape))

    def index(self, i: int) -> Tile:
        assert 0 <= i < self.shape[0]
        return Tile(self.memory, self.first + i * _size(self.shape[1:]), self.shape[1:])

    def _reinterpret(self, dtype: torch.dtype, shape: Sequence[int], layout: object) -> Tile:
        assert dtype == self.dtype and _size(shape) == _size(self.shape)
        return Tile(self.memory, self.first, tuple(shape))

    def permute(self, order: tuple[int, int]) -> Tile:
        assert order == (1, 0)
        return Tile(self.memory, self.first, self.shape, not self.turned)

    def _cells(self) -> Tensor:
        rows, columns = self.shape[-2:]
        assert _size(self.shape) == rows * columns and columns % PANEL == 0
        flat = self.memory[self.first : self.first + rows * columns]
        return flat.view(columns // PANEL, rows, PANEL).transpose(0, 1)

    def read(self) -> Tensor:
        found = self._cells().reshape(self.shape[-2:])
        return found.T if self.turned else found

    def write(self, values: Tensor) -> None:
        self._cells().copy_(values.reshape(self.shape[-2], -1, PANEL))

    def load(self, layout: object) -> Tensor:
        return self.read().clone()

    def store(self, values: Tensor) -> None:
        assert values.dtype == self.dtype
        self.write(values)


@dataclass(frozen=True)
class Barriers:
    """An array of mbarriers, not counting anything yet."""

    made: list[Barrier | None]
    at: int | None = None

    def index(self, i: int) -> Barriers:
        return Barriers(self.made, i)

    @property
    def barrier(self) -> Barrier:
        assert self.at is not None
        found = self.made[self.at]
        assert found is not None, "a barrier is used before it is made"
        return found


@dataclass
class Product:
    """A product that was asked for: its operands, and its result once there is one."""

    first: Tile | Tensor
    second: Tile
    add: Product | Tensor | None
    result: Tensor | None = None

    def compute(self) -> None:
        first = self.first.read() if isinstance(self.first, Tile) else self.first
        found = first.float() @ self.second.read().float()
        add = self.add.result if isinstance(self.add, Product) else self.add
        assert add is not None or self.add is None
        self.result = found if add is None else found + add

    def reads(self, place: Tile) -> bool:
        used = [x for x in (self.first, self.second) if isinstance(x, Tile) and x.memory is place.memory]
        return any(x.span.start < place.span.stop and place.span.start < x.span.stop for x in used)


@dataclass
class Group:
    """A group of warps: its thread, what it waits for, and its products in the order in which they were asked for."""

    name: str
    thread: threading.Thread | None = None
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    ready: Callable[[], bool] = lambda: True
    products: list[Product] = field(default_factory=list)
    done: bool = False


class Stop(Exception):
    """Ends a thread whose program has failed elsewhere."""


class Machine:
    """One program at a time."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.back = threading.Semaphore(0)
        self.groups: dict[int, Group] = {}
        self.copies: list[tuple[Tile, Tensor, Barrier, int]] = []
        self.failure: BaseException | None = None
        self.program: tuple[int, ...] = (0, 0)
        self.deepest = 0

    def group(self) -> Group:
        return self.groups[threading.get_ident()]

    def pause(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Let others go on, at least until `ready`."""
        group = self.group()
        group.ready = ready
        self.back.release()
        group.turn.acquire()
        if self.failure is not None:
            raise Stop

    def specialise(self, parts: Sequence[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
        """Run all parts to their end, in an order drawn at random."""
        groups = [Group(f"{i}: {function.__name__}") for i, (function, _) in enumerate(parts)]

        def body(group: Group, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
            self.groups[threading.get_ident()] = group
            group.turn.acquire()
            try:
                if self.failure is None:
                    function(*arguments)
                    if group.products:
                        raise ProtocolError(f"{group.name} ends with products under way")
            except Stop:
                pass
            except BaseException as error:
                self.failure = self.failure or error
            group.done = True
            self.back.release()

        for group, (function, arguments) in zip(groups, parts, strict=True):
            group.thread = threading.Thread(target=body, args=(group, function, arguments), daemon=True)
            group.thread.start()
        weights: dict[str, float] = {}
        while not all(group.done for group in groups):
            if self.failure is None:
                self._one(groups, weights)
            else:
                for group in groups:
                    if not group.done:
                        group.turn.release()
                        self.back.acquire()
        for group in groups:
            assert group.thread is not None
            group.thread.join()
        if self.failure is not None:
            raise self.failure
        if self.copies:
            raise ProtocolError("copies that nobody waited for")

    def _one(self, groups: list[Group], weights: dict[str, float]) -> None:
        """One step of a group, a copy or a product; who is slow changes now and then."""
        able: list[Group | str] = [group for group in groups if not group.done and group.ready()]
        able += ["copy"] * bool(self.copies) + ["product"] * any(group.products for group in groups)
        if not any(isinstance(x, Group) for x in able) and not self.copies:
            raise_in = ", ".join(group.name for group in groups if not group.done)
            self.failure = ProtocolError(f"a deadlock of {raise_in}")
            return
        if not weights or self.chance.random() < 0.05:
            names = [group.name for group in groups] + ["copy", "product"]
            weights.update({name: 10.0 ** self.chance.uniform(-2, 0) for name in names})
        (turn,) = self.chance.choices(able, [weights[x if isinstance(x, str) else x.name] for x in able])
        if turn == "copy":
            place, values, barrier, size = self.copies.pop(self.chance.randrange(len(self.copies)))
            place.write(values)
            barrier.take(size)
        elif turn == "product":
            self.finish(self.chance.choice([group for group in groups if group.products]))
        else:
            assert isinstance(turn, Group)
            turn.turn.release()
            self.back.acquire()

    def finish(self, group: Group) -> None:
        """Compute a group's oldest product."""
        product = group.products.pop(0)
        if any(product.reads(place) for place, *_ in self.copies):
            raise ProtocolError(f"{group.name} reads a tile that is not there")
        product.compute()


class _Anything:
    """Stands for layouts."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **options: None


def _language(machine: Machine, lost: Site | None = None) -> dict[str, Any]:
    """What the names of the language stand for in a kernel that this machine runs; `lost` does nothing."""

    def is_lost() -> bool:
        frame = sys._getframe(2)
        return lost == (frame.f_code.co_name, frame.f_lineno)

    def load(pointer: Pointer, mask: Tensor | None = None, other: float = 0.0) -> Any:
        if not isinstance(pointer.offset, Tensor):
            return pointer.storage[pointer.offset].item()
        offset = pointer.offset if mask is None else torch.where(mask, pointer.offset, 0)
        found = pointer.storage[offset.long()]
        return found if mask is None else torch.where(mask, found, torch.tensor(other, dtype=found.dtype))

    def store(pointer: Pointer, values: Tensor, mask: Tensor) -> None:
        mask = mask.expand(values.shape)
        pointer.storage[pointer.offset.expand(values.shape)[mask]] = values[mask].to(pointer.storage.dtype)

    def where(condition: Any, a: Any, b: Any) -> Any:
        return torch.where(condition, a, b) if isinstance(condition, Tensor) else a if condition else b

    def pick(tensors: Callable[[Tensor, Tensor], Tensor], numbers: Callable[[Any, Any], Any]) -> Callable[..., Any]:
        return lambda a, b: tensors(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else numbers(a, b)

    def total(x: Tensor, axis: int) -> Any:
        found = x.sum(axis)
        return found if found.dim() else int(found)

    def shared(dtype: Any, shape: Sequence[int], layout: object) -> Tile | Barriers:
        if dtype is torch.int64:
            return Barriers([None] * shape[0])
        return Tile(torch.full((_size(shape),), torch.nan, dtype=dtype), 0, tuple(shape))

    def init(bars: Barriers, count: int) -> None:
        assert bars.at is not None
        bars.made[bars.at] = Barrier(count, count)

    def wait(bars: Barriers, phase: int) -> None:
        if is_lost():
            return
        machine.pause(lambda: bars.barrier.parity != phase)

    def expect(bars: Barriers, size: int) -> None:
        if is_lost():
            return
        bars.barrier.arrive(1, announced=size)
        machine.pause()

    def arrive(bars: Barriers, count: int) -> None:
        if is_lost():
            return
        bars.barrier.arrive(count)
        machine.pause()

    def copy(descriptor: Any, at: Sequence[int], bars: Barriers, place: Tile) -> None:
        if is_lost():
            return
        if any(product.reads(place) for group in machine.groups.values() for product in group.products):
            raise ProtocolError("a copy onto a tile that a product under way reads")
        values = _box(descriptor, at)
        assert tuple(values.shape) == place.shape
        place.write(torch.full_like(values, torch.nan))
        machine.copies.append((place, values, bars.barrier, values.numel() * values.element_size()))
        machine.pause()

    def product(
        first: Tile | Tensor, second: Tile, acc: Product | Tensor, *, use_acc: bool = True, is_async: bool = False
    ) -> Product:
        assert is_async and isinstance(second, Tile)
        asked = Product(first, second, acc if use_acc else None)
        machine.group().products.append(asked)
        machine.deepest = max(machine.deepest, len(machine.group().products))
        machine.pause()
        return asked

    def product_wait(num_outstanding: int, deps: Sequence[Product | Tensor]) -> Any:
        group = machine.group()
        while len(group.products) > num_outstanding and not is_lost():
            machine.finish(group)
        found = []
        for dep in deps:
            if isinstance(dep, Product) and dep.result is None:
                raise ProtocolError("a result is used while its product is under way")
            # Whether it is there by luck does not count.
            found.append(dep.result if isinstance(dep, Product) else dep)
        machine.pause()
        return found[0] if len(found) == 1 else tuple(found)

    anything = _Anything()
    gl = types.SimpleNamespace(
        **{name: getattr(torch, name) for name in ("float32", "int32", "int64", "exp2", "log2")},
        program_id=lambda axis: Scalar(machine.program[axis]),
        load=load,
        store=store,
        where=where,
        minimum=pick(torch.minimum, min),
        maximum=pick(torch.maximum, max),
        max=lambda x, axis: x.amax(axis),
        sum=total,
        cdiv=lambda a, b: -(-a // b),
        arange=lambda start, end, layout: torch.arange(start, end, dtype=torch.int32),
        full=lambda shape, value, dtype, layout: torch.full(tuple(shape), value, dtype=dtype),
        expand_dims=lambda x, axis: x.unsqueeze(axis),
        convert_layout=lambda x, layout: x,
        allocate_shared_memory=shared,
        static_range=range,
        warp_specialize=lambda parts, warps, registers: machine.specialise(parts),
        **{name: getattr(anything, name) for name in _LAYOUTS},
    )
    return {
        "gl": gl,
        "mbarrier": types.SimpleNamespace(
            MBarrierLayout=anything.layout, init=init, wait=wait, expect=expect, arrive=arrive
        ),
        "tma": types.SimpleNamespace(async_copy_global_to_shared=copy),
        "fence_async_shared": lambda: None,
        "warpgroup_mma": product,
        "warpgroup_mma_wait": product_wait,
    }


_LAYOUTS = ("BlockedLayout", "SliceLayout", "DotOperandLayout", "NVMMADistributedLayout", "NVMMASharedLayout")


def _box(descriptor: Any, at: Sequence[int]) -> Tensor:
    """A box of what a host descriptor describes; zeros outside."""
    whole = descriptor.base.as_strided(tuple(descriptor.shape), tuple(descriptor.strides))
    box = torch.zeros(tuple(descriptor.block_shape), dtype=whole.dtype)
    part = whole[tuple(slice(i, i + size) for i, size in zip(at, descriptor.block_shape, strict=True))]
    box[tuple(slice(0, size) for size in part.shape)] = part
    return box


def _size(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())


class Emulated:
    """Takes the place of a Gluon kernel: launched alike, it runs every program of the grid, one after another.

    Attributes:
        seed: of the order in which things happen.
        lost: a call that does nothing, to see whether that is noticed.
        deepest: most products of a group that were under way at once.
    """

    def __init__(self, kernel: GluonJITFunction[Any], seed: int = 0, lost: Site | None = None) -> None:
        self.kernel, self.seed, self.lost = kernel, seed, lost
        self.deepest = 0

    def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            given = {name: value for name, value in options.items() if name in self.kernel.arg_names}
            taken = [self._argument(x) for x in arguments]
            for y in range(grid[1]):
                for x in range(grid[0]):
                    machine = Machine(self.seed * 1_000_003 + y * grid[0] + x)
                    machine.program = (x, y)
                    _rebuilt(self.kernel, _language(machine, self.lost), {})(*taken, **given)
                    self.deepest = max(self.deepest, machine.deepest)

        return launch

    @staticmethod
    def _argument(x: Any) -> Any:
        if isinstance(x, TensorDescriptor):
            names = ("base", "shape", "strides", "block_shape")
            return types.SimpleNamespace(dtype=x.base.dtype, **{name: getattr(x, name) for name in names})
        if not isinstance(x, Tensor):
            return x
        # All elements from where the tensor starts.
        held = x.untyped_storage().nbytes() // x.element_size() - x.storage_offset()
        return Pointer(x.as_strided((held,), (1,)))


def _rebuilt(
    kernel: GluonJITFunction[Any], language: dict[str, Any], known: dict[str, Callable[..., Any]]
) -> Callable[..., Any]:
    """The Python function of a kernel, over another language; the functions it calls likewise."""
    function = kernel.fn
    space = {**function.__globals__, **language}
    made = types.FunctionType(function.__code__, space, function.__name__, function.__defaults__, function.__closure__)
    known[function.__name__] = made
    for name in function.__code__.co_names:
        called = function.__globals__.get(name)
        if isinstance(called, GluonJITFunction):
            space[name] = known.get(name) or _rebuilt(called, language, known)
    return made


def sites(kernel: GluonJITFunction[Any], names: Sequence[str]) -> list[Site]:
    """Every call of functions of these names in a kernel and in those that it calls."""
    found: dict[str, list[Site]] = {}

    def visit(kernel: GluonJITFunction[Any]) -> None:
        function = kernel.fn
        lines, first = inspect.getsourcelines(function)
        found[function.__name__] = []
        for node in ast.walk(ast.parse("".join(lines))):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in names:
                    found[function.__name__].append((function.__name__, first + node.lineno - 1))
            elif isinstance(node, ast.Name):
                called = function.__globals__.get(node.id)
                if isinstance(called, GluonJITFunction) and node.id not in found:
                    visit(called)

    visit(kernel)
    return [site for some in found.values() for site in sorted(some)]
