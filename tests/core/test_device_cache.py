"""What stays on a device between calls: how much of it, for how long, and for which stream, thread or CUDA graph."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from draftattention.draftattn_core.geometry import device_cache
from draftattention.draftattn_core.geometry import per_head as transfer
from draftattention.draftattn_core.geometry.device_cache import DeviceCache
from draftattention.draftattn_core.geometry.layout import TableCache
from draftattention.draftattn_core.geometry.per_head import per_head
from draftattention.draftattn_core.method.policy import Policy
from draftattention.draftattn_core.method.selection import forced_blocks
from tests.core.cases import small_layout

CPU = torch.device("cpu")


def kilobyte() -> Tensor:
    return torch.zeros(256)


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Begin or end what the core takes for the capture of a graph."""

    def switch(on: bool) -> None:
        for module in (device_cache, transfer):
            monkeypatch.setattr(module, "is_capturing", lambda device: on)

    return switch


def test_it_is_bounded_and_drops_the_least_recently_used() -> None:
    cache = DeviceCache(limit_bytes=2048)
    first = cache.get(1, CPU, kilobyte)
    cache.get(2, CPU, kilobyte)
    assert cache.get(1, CPU, kilobyte) is first
    cache.get(3, CPU, kilobyte)
    assert len(cache) == 2
    assert cache.get(1, CPU, kilobyte) is first


def test_small_tensors_count_as_what_they_take() -> None:
    cache = DeviceCache(limit_bytes=2048)
    for key in range(20):
        cache.get(key, CPU, lambda: torch.zeros(1))
    assert len(cache) == 4


def test_more_than_the_limit_is_not_kept() -> None:
    cache = DeviceCache(limit_bytes=512)
    kept = cache.get(0, CPU, lambda: torch.zeros(1))
    assert cache.get(1, CPU, kilobyte).numel() == 256
    assert len(cache) == 1 and cache.get(0, CPU, kilobyte) is kept


def test_of_two_that_make_one_entry_the_first_is_kept(capture: Callable[[bool], None]) -> None:
    """The other thread's tensor may be in a graph by the time this one has made its own."""
    cache, others = DeviceCache(limit_bytes=1 << 20), []

    def late() -> Tensor:
        others.append(cache.get(1, CPU, kilobyte))
        capture(True)
        assert cache.get(1, CPU, kilobyte) is others[0]
        capture(False)
        return kilobyte()

    assert cache.get(1, CPU, late) is others[0]
    capture(True)
    assert cache.get(1, CPU, kilobyte) is others[0]


def test_what_a_graph_reads_outlives_every_later_entry(capture: Callable[[bool], None]) -> None:
    cache = DeviceCache(limit_bytes=2048)
    read = cache.get("read", CPU, kilobyte)
    capture(True)
    assert cache.get("read", CPU, kilobyte) is read
    capture(False)
    address = weakref.ref(read)
    del read
    for key in range(5):
        cache.get(key, CPU, kilobyte)
    assert cache.get("read", CPU, kilobyte) is address()
    assert len(cache) == 3


def test_what_is_made_during_a_capture_is_the_graphs_alone(capture: Callable[[bool], None]) -> None:
    """Before the first replay there is nothing in it, and its memory is the graph's."""
    cache = DeviceCache(limit_bytes=2048)
    capture(True)
    made = [cache.get(1, CPU, kilobyte) for _ in range(2)]
    assert made[0] is not made[1]
    assert len(cache) == 0


def test_per_head_values_are_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_SENT", DeviceCache(1 << 20))
    sent = per_head([0.5, 0.25], CPU, torch.float32)
    assert per_head((0.5, 0.25), CPU, torch.float32) is sent
    assert per_head([0.25, 0.5], CPU, torch.float32).tolist() == [0.25, 0.5]
    # True and 1 are one key to Python.
    assert per_head([1, 0], CPU, torch.int32).dtype == torch.int32
    assert per_head([True, False], CPU, torch.bool).dtype == torch.bool
    assert per_head([0.5, 0.25], torch.device("meta"), torch.float32).device.type == "meta"


def test_new_values_take_nothing_of_the_host_into_a_graph(
    capture: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def from_the_host(*_: object, **__: object) -> None:
        raise AssertionError("a tensor was made from numbers of the host")

    monkeypatch.setattr(transfer, "_SENT", DeviceCache(1 << 20))
    monkeypatch.setattr(torch, "tensor", from_the_host)
    with pytest.raises(AssertionError, match="numbers of the host"):
        per_head([2, 2, 3], CPU, torch.int32)
    capture(True)
    made = per_head([2, 2, 3, 2], CPU, torch.int32)
    assert made.tolist() == [2, 2, 3, 2] and made.dtype == torch.int32
    assert per_head([True, False], CPU, torch.bool).tolist() == [True, False]


class Stream:
    """What the cache asks of a CUDA stream."""

    def __init__(self) -> None:
        self.waited: list[object] = []

    def wait_event(self, event: object) -> None:
        self.waited.append(event)


def test_another_stream_waits_until_a_tensor_is_made_and_holds_its_memory(
    monkeypatch: pytest.MonkeyPatch, capture: Callable[[bool], None]
) -> None:
    first, second = Stream(), Stream()
    held: list[Stream] = []
    current = [first]
    monkeypatch.setattr(device_cache, "_entry", lambda x: device_cache._Entry(x, current[0], "made"))  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[0])
    monkeypatch.setattr(Tensor, "record_stream", lambda x, stream: held.append(stream), raising=False)
    cache = DeviceCache(limit_bytes=2048)
    for _ in range(2):
        cache.get(1, CPU, kilobyte)
    assert not first.waited and not held
    current[0] = second
    cache.get(1, CPU, kilobyte)
    assert second.waited == ["made"] and held == [second]
    # A capture may not wait for what was launched outside of it, and its entries are never dropped.
    capture(True)
    cache.get(1, CPU, kilobyte)
    assert len(second.waited) == len(held) == 1


def test_threads_get_one_tensor_in_the_end() -> None:
    cache, start = DeviceCache(limit_bytes=1 << 20), threading.Barrier(8)

    def ask(_: int) -> list[Tensor]:
        start.wait()
        return [cache.get(key, CPU, lambda key=key: torch.full((4,), key)) for key in range(50)]  # type: ignore[misc]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    assert all(x.tolist() == [key] * 4 for mine in found for key, x in enumerate(mine))
    assert len(cache) == 50
    assert cache._bytes == 50 * 512


def test_what_inference_leaves_serves_training_too() -> None:
    cache = DeviceCache(limit_bytes=2048)
    with torch.inference_mode():
        cache.get(1, CPU, kilobyte)
    x = torch.ones(256, requires_grad=True)
    (x * cache.get(1, CPU, kilobyte)).sum().backward()
    assert torch.equal(x.grad, torch.zeros(256))


def test_a_tracers_tensor_is_not_kept() -> None:
    cache = DeviceCache(limit_bytes=2048)
    with FakeTensorMode():
        cache.get(1, CPU, kilobyte)
    assert type(cache.get(1, CPU, kilobyte)) is Tensor


def test_constants_are_freed_with_their_tables() -> None:
    cache, policy = TableCache(), Policy(keep_first_frame=True)
    constant = weakref.ref(forced_blocks(cache.get(small_layout(), "cpu"), policy))
    assert constant() is forced_blocks(cache.get(small_layout(), "cpu"), policy)
    cache.clear()
    assert constant() is None
