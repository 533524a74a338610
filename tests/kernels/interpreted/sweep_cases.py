"""The sweep's own rows, interpreted: a configuration is compared with and without its tail, and a wrong one found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from benchmarks.gpu import sweep
from benchmarks.gpu.health import LAUNCH, health_rows
from benchmarks.kernels.plan import Shape
from benchmarks.kernels.row import Row
from benchmarks.kernels.timing import Clock, Timing
from draftattention.kernels import attend_pointer
from draftattention.kernels.configs import AttendConfig
from draftattention.kernels.types import AttendInputs

CPU = torch.device("cpu")
SMALL = AttendConfig(32, 16, 16, 4, 2, 1)
WORK: dict[str, Any] = {"kind": "candidate", "dim": 64, "config": asdict(SMALL)}


def small(monkeypatch: pytest.MonkeyPatch, *, wrong_with_tail: bool = False) -> None:
    """Kernels that, if asked, are a thousandth off where there is a tail."""
    right = attend_pointer.attend_pointer

    def attend(inputs: AttendInputs, config: AttendConfig, out: torch.Tensor) -> None:
        right(inputs, config, out)
        if wrong_with_tail and inputs.tail is not None:
            out *= 1.001

    monkeypatch.setattr(attend_pointer, "attend_pointer", attend)


def only(rows: Iterator[Row]) -> Row:
    (row,) = rows
    return row


def test_a_candidate_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    row = only(sweep.candidate_rows(WORK, CPU))
    assert (row.status, row.what) == ("unmeasured", "32x16 g16 w4 s2 t1")
    assert row.off is not None and row.off < 2e-6


def test_a_candidate_that_is_wrong_only_in_its_tail_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, wrong_with_tail=True)
    row = only(sweep.candidate_rows(WORK, CPU))
    assert row.status == "wrong" and "the limit is" in row.note


def test_a_candidate_that_raises_is_a_row() -> None:
    bad = {**WORK, "config": asdict(replace(SMALL, block_g=128))}
    row = only(sweep.candidate_rows(bad, CPU))
    assert row.status == "failed" and "more than 64 blocks" in row.note


def test_configurations_are_timed_where_they_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(Clock):
        def time(self, run: Any) -> Timing:
            return Timing(2.0, 0.1, 3)

    monkeypatch.setattr(sweep, "Clock", lambda device, **_: Stopped(device))
    small(monkeypatch, wrong_with_tail=True)
    shape = Shape("tiny", (2, 5, 9), 0, 1, 64, 32, 16)
    work = {"kind": "sweep", "shape": asdict(shape), "configs": [asdict(SMALL), asdict(replace(SMALL, block_g=128))]}
    rows = list(sweep.sweep_rows(work, CPU))
    # A wrong one gets no time; one that raises does not end the sweep.
    assert [row.status for row in rows] == ["wrong", "timed", "failed", "failed"]
    assert [row.seconds for row in rows] == [None, 2.0, None, None]
    assert sweep.seconds_by_config(rows, [SMALL]) == {}


def test_health_compiles_and_launches_a_kernel_of_ours() -> None:
    rows = {row.what: row for row in health_rows({}, CPU)}
    assert rows[LAUNCH].status == "unmeasured" and not rows[LAUNCH].note
