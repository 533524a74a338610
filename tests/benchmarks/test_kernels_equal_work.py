"""Peers of the kernel bench: what calls should give, and the gates that every peer has to pass."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from benchmarks.kernels import __main__ as bench
from benchmarks.kernels import peer_rows as rows_of_peers
from benchmarks.kernels.inputs import QKV, defined_rows, kept_blocks, relative, structured
from benchmarks.kernels.peer_rows import gate, gate_shape, peer_rows, reference
from benchmarks.kernels.peers import PEERS, load, missing
from benchmarks.kernels.plan import QUICK, TINY, Shape
from benchmarks.kernels.row import Row
from benchmarks.kernels.timing import Clock
from draftattention.draftattn_core import Policy
from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.geometry.layout import build_tables
from draftattention.draftattn_core.method.draft import make_draft
from draftattention.draftattn_core.method.selection import select_from_draft
from draftattention.draftattn_core.method.tail.expand import make_tail

CPU = torch.device("cpu")

CLOCK = Clock(CPU)

VIDEO, WITH_TEXT = replace(TINY[0], heads=1), replace(TINY[1], heads=1, dim=64)


def fake(name: str) -> str:
    return f"tests.benchmarks.stand_ins:{name}"


def rows_from(name: str, shape: Shape = VIDEO) -> list[Row]:
    (peer,) = load(fake(name))
    return list(peer_rows(peer, [shape], [0.5, 0.25], torch.float32, CLOCK))


@pytest.mark.parametrize("shape", [VIDEO, WITH_TEXT], ids=lambda shape: shape.name)
def test_a_right_peer_gets_a_row_per_density(shape: Shape) -> None:
    rows = rows_from("RIGHT", shape)
    assert [(row.status, row.density) for row in rows] == [("unmeasured", 0.5), ("unmeasured", 0.25)]
    for row in rows:
        assert row.off is not None and row.off < 1e-6 and row.error is not None and row.error > 0.01
        assert row.executed is not None and row.flops == pytest.approx(shape.flops * row.executed)


def test_a_dense_peer_is_one_more_dense_row() -> None:
    (row,) = rows_from("DENSE", WITH_TEXT)
    assert (row.kind, row.status, row.density, row.executed, row.by) == ("dense", "unmeasured", 1.0, 1.0, "")
    assert row.error is not None and row.error < 1e-6 and row.flops == WITH_TEXT.flops


def test_a_peer_that_is_off_in_the_small_call_is_never_run_at_size() -> None:
    (row,) = rows_from("WRONG")
    assert row.status == "wrong" and row.shape == "" and row.seconds is None and "on a small call" in row.note


def test_a_peer_that_is_off_at_size_gets_no_speed() -> None:
    rows = rows_from("WRONG_AT_FULL_SIZE")
    assert [row.status for row in rows] == ["wrong", "wrong"]
    assert all(row.seconds is None and row.off == pytest.approx(0.01, rel=1e-3) for row in rows)


def test_what_a_peer_raises_is_a_result() -> None:
    (row,) = rows_from("RAISES")
    assert row.status == "failed" and row.note == "on a small call: NotImplementedError: this GPU / is not served"


def test_a_shape_whose_inputs_do_not_fit_leaves_the_next_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int = 0) -> QKV:
        if shape.name == "large":
            raise torch.OutOfMemoryError("no memory")
        return structured(shape, device, dtype, seed)

    monkeypatch.setattr(rows_of_peers, "structured", no_room)
    (peer,) = load(fake("RIGHT"))
    rows = list(peer_rows(peer, [replace(VIDEO, name="large"), VIDEO], [0.5], torch.float32, CLOCK))
    assert [(row.shape, row.status) for row in rows] == [("large", "failed"), ("tiny video", "unmeasured")]


def test_head_sizes_a_peer_does_not_take_are_skipped() -> None:
    (row,) = rows_from("OTHER_SIZES")
    assert row.status == "skipped" and "(128,)" in row.note


def test_every_adapter_loads_and_says_what_it_lacks() -> None:
    for target in PEERS.values():
        for peer in load(target):
            why = missing(peer, "cpu")
            assert why is None or "not installed" in why or "CUDA" in why
    absent = {row.what for row in bench.jobs(QUICK, PEERS, True)[1]}
    if importlib.util.find_spec("flashinfer") is None:
        assert "FlashInfer block-sparse" in absent


def test_a_peer_without_a_kernel_for_the_device_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """comfy_kitchen would run its eager reference, or raise, where it has no fused kernel."""
    (peer,) = load(PEERS["comfy_kitchen"])
    stand_in = ModuleType("comfy_kitchen")
    stand_in.sol_attn_is_available = lambda device: False  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy_kitchen", stand_in)
    shape = Shape("S", (2, 5, 9), 0, 1, 128, 32, 16)
    (row,) = peer_rows(peer, [shape], [0.5], torch.bfloat16, Clock(torch.device("cuda")))
    assert (row.status, row.note) == ("skipped", "comfy_kitchen has no fused sol_attn for this device")
    assert peer.refuses(CPU) is None


@pytest.mark.skipif(importlib.util.find_spec("comfy_kitchen") is None, reason="comfy_kitchen is not installed")
def test_the_peer_of_comfyui_is_dense_attention_where_all_is_exact_and_meets_our_density() -> None:
    (peer,) = load(PEERS["comfy_kitchen"])
    shape = gate_shape(peer, replace(TINY[0], dim=128), CLOCK)
    assert gate(peer, shape, torch.float32, CLOCK) < 1e-5
    long = Shape("long", (4, 16, 16), 70, 1, 128, 128, 64)
    (row,) = peer_rows(peer, [long], [0.5], torch.float32, CLOCK)
    ours = kept_blocks(long, structured(long, CPU, torch.float32), 0.5).executed()
    assert row.status == "unmeasured" and row.executed == pytest.approx(ours, abs=0.06)
    assert row.error is not None and row.error < 0.5


def request_of(shape: Shape, tail: str) -> AttendRequest:
    q, k, v = structured(shape, CPU, torch.float32)
    tables, policy = build_tables(shape.layout), Policy(density=0.4, tail=tail)  # type: ignore[arg-type]
    draft = make_draft(q, k, tables, spread=True)
    keep = select_from_draft(draft, tables, policy, 0.125)
    return AttendRequest(q, k, v, tables, keep, make_tail(k, v, tables, policy.tail), None, 0.125)


@pytest.mark.parametrize("tail", ["none", "mean", "linear0", "linear2"])
def test_sampled_rows_are_those_of_the_reference(tail: str) -> None:
    request = request_of(replace(WITH_TEXT, heads=2), tail)
    tables = request.tables
    rows = torch.tensor([0, 1, 57, 89, 90, 110])
    kept = request.keep[0][:, tables.q.of_token[rows]]
    found = defined_rows(
        (request.q, request.k, request.v),
        tables.perm[rows],
        request.scale,
        kept,
        tables.k.of_token[tables.inverse],
        request.tail,
    )
    assert relative(found, attend_reference(request)[0][:, tables.perm[rows]]) < 1e-6


@pytest.mark.parametrize("shape", [VIDEO, WITH_TEXT], ids=lambda shape: shape.name)
def test_plain_blocks_keep_what_ours_keep_and_little_more(shape: Shape) -> None:
    qkv = structured(shape, CPU, torch.float32)
    call = kept_blocks(shape, qkv, 0.3)
    tables = build_tables(shape.layout)
    draft = make_draft(*qkv[:2], tables, spread=True)
    ours = select_from_draft(draft, tables, Policy(density=0.3), call.scale)
    position = torch.arange(shape.tokens)
    plain = call.keep[0, 0][position // shape.q_block][:, position // shape.k_block]
    exact = ours[0, 0][tables.q.of_token][:, tables.k.of_token]
    assert bool((plain | ~exact).all())
    assert call.executed() == pytest.approx(float(plain.float().mean()))
    if not shape.extra:
        assert torch.equal(plain, exact)
    rows = torch.tensor([0, 40, shape.tokens - 1])
    assert relative(call.expected(rows), reference(call, dense=False)[0][:, rows]) < 1e-6


def test_lists_are_ascending_and_hold_what_is_kept() -> None:
    call = kept_blocks(WITH_TEXT, structured(WITH_TEXT, CPU, torch.float32), 0.3)
    lists, counts = call.lists()
    for row in range(lists.shape[2]):
        found = lists[0, 0, row, : counts[0, 0, row]].tolist()
        assert found == call.keep[0, 0, row].nonzero().flatten().tolist()
