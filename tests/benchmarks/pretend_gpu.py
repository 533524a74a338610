"""A stand-in for a machine with a GPU: children that say what they are told to, on a clock of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as bench
from benchmarks.gpu import stage_a, tools
from benchmarks.gpu.health import ARCHITECTURE, DEVICE
from benchmarks.gpu.sweep import WITH_TAIL, words
from benchmarks.kernels.process import Outcome
from benchmarks.kernels.row import Row
from draftattention.kernels.configs import AttendConfig

Work = dict[str, Any]
H200 = {"device": "NVIDIA H200", "driver": "580.1", "torch": "2.11.0+cu130", "triton": "3.6.0"}


def cost(config: AttendConfig) -> float:
    """Seconds of `attend` on this machine: more stages and fewer warps are good, narrow tiles are not."""
    narrow = 0.01 * (config.block_g < 64) + 0.02 * (config.block_n < 64) + 0.02 * (config.block_m < 128)
    return 0.050 - 0.002 * config.stages + 0.001 * config.warps + narrow


@dataclass
class PretendGpu:
    """What happened on it, and how its children behave.

    Attributes:
        now: its clock, seconds.
        seconds: a child takes.
        hangs, wrong: whether the child of a piece of work never answers, or finds its kernel wrong.
        started: works in the order in which their children were told to go; `under`: the tools they ran under.
        benches: arguments of the other benches, by kind.
    """

    now: float = 0.0
    seconds: float = 4.0
    hangs: Callable[[Work], bool] = lambda work: False
    wrong: Callable[[Work], bool] = lambda work: False
    started: list[Work] = field(default_factory=list)
    under: list[tuple[str, ...]] = field(default_factory=list)
    benches: dict[str, list[str]] = field(default_factory=dict)

    def kinds(self) -> list[str]:
        return [str(work["kind"]) for work in self.started]

    def child(self, work: Work, device: str, under: tuple[str, ...] = ()) -> Child:
        assert device == "cuda"
        return Child(self, work, under)

    def rows(self, work: Work) -> tuple[Row, ...]:
        bad = self.wrong(work)
        if work["kind"] == "health":
            return Row("health", DEVICE, "right", note="H200"), Row("health", ARCHITECTURE, "right", note="sm_90")
        if work["kind"] == "check":
            row = Row("check", "a check", "unmeasured", by=work["variant"], off=1e-3)
            return (replace(row, status="wrong", note="off by 1") if bad else row,)
        if work["kind"] == "candidate":
            status = "wrong" if bad else "right"
            return (Row("sweep", words(AttendConfig(**work["config"])), status, off=1e-3),)  # type: ignore[arg-type]
        configs = [AttendConfig(**plain) for plain in work["configs"]]
        return tuple(Row("sweep", f"{words(one)}, {WITH_TAIL}", "timed", seconds=cost(one)) for one in configs)

    def bench(self, kind: str, code: int = 0) -> Callable[[list[str]], int]:
        """Another bench: it takes its time and leaves a result."""

        def main(arguments: list[str]) -> int:
            self.benches[kind] = arguments
            self.now += 60.0 * float(arguments[arguments.index("--minutes") + 1])
            file = Path(arguments[arguments.index("--out") + 1])
            file.write_text(json.dumps(RESULTS[kind]))
            return code

        return main


@dataclass
class Child:
    gpu: PretendGpu
    about: Work
    under: tuple[str, ...]

    def work(self, limit: float) -> Outcome:
        self.gpu.started.append(self.about)
        self.gpu.under.append(self.under)
        if self.gpu.hangs(self.about) or limit < self.gpu.seconds:
            self.gpu.now += limit
            return Outcome((), f"no answer within {limit:.0f} s, stopped", limit)
        self.gpu.now += self.gpu.seconds
        return Outcome(self.gpu.rows(self.about), "done", self.gpu.seconds)

    def stop(self) -> None:
        pass


def _row(kind: str, what: str, seconds: float, by: str = "") -> Work:
    row = Row(kind, what, "timed", "Wan 14B 720p", by, 0.1, 0.1, seconds)  # type: ignore[arg-type]
    return row.to_dict()


RESULTS: dict[str, Work] = {
    "kernels": {
        "rows": [
            _row("dense", "cuDNN", 0.1) | {"density": 1.0, "executed": 1.0},
            _row("ours", "attend", 0.0125, "pointer"),
            _row("peer", "FlexAttention", 0.025, "128/64"),
        ]
    },
    "e2e": {"verdicts": [{"target": "Wan 14B 720p, 20 steps", "word": "missed", "said": "1.60 x (1.70 x later)"}]},
}


def pretend(monkeypatch: pytest.MonkeyPatch, gpu: PretendGpu) -> PretendGpu:
    """Put the stand-in where the bench looks for a GPU, its tools, its clock and the other benches."""
    monkeypatch.setattr(time, "monotonic", lambda: gpu.now)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("benchmarks.kernels.process.Child", gpu.child)
    monkeypatch.setattr(bench, "machine", lambda measured: dict(H200))
    monkeypatch.setattr(stage_a, "triton_version", lambda: "3.6.0")
    monkeypatch.setattr(tools, "find_tool", lambda name: f"/tools/{name}")
    monkeypatch.setattr(bench.kernels, "main", gpu.bench("kernels"))
    monkeypatch.setattr(bench.e2e, "main", gpu.bench("e2e"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    return gpu
