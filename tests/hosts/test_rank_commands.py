"""What a user starts over several ranks, as the docs say it: on two CPU processes here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

from benchmarks.ranks import MARK, told
from tests.hosts.rank_processes import rank_processes

ROOT = Path(__file__).resolve().parents[2]


def said(*command: str) -> str:
    """What a command prints, run from the root of the repository."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_the_torchrun_example_of_the_docs_runs_on_two_cpu_processes_and_reports_once():
    example = ("docs/examples/diffusers_ranks.py", "--steps", "2")
    out = said("torch.distributed.run", "--standalone", "--nproc-per-node", "2", *example)
    # 2 steps of 2 conditions in 2 layers, by one of the two ranks.
    assert out.count("8 of 8 self-attention calls sparse") == 1, out
    distance = re.findall(r"2 ranks on cpu: relative L2 distance from the dense run ([\d.]+)", out)
    assert len(distance) == 1 and 0.0 < float(distance[0]) < 0.1, out


def test_a_row_of_the_bench_over_ranks_is_made_on_cpu_processes():
    with rank_processes(2, "tests.hosts.parallel_cases") as two:
        printed, nothing = two.call("bench_row")
    row = json.loads(printed.partition(MARK)[2])
    assert nothing == ""
    # 192 tokens of 2 heads of 16: four tensors in float32, of which each rank sends half of its half.
    assert (row["ranks"], row["tokens"], row["call_bytes"]) == (2, 192, 4 * 192 * 2 * 16 * 4 // 4)
    assert row["executed_density"] < 0.9 and min(row["dense_s"], row["sparse_s"], row["agree_s"]) > 0.0
    assert "2 ranks on CPU processes, 192 tokens" in told(row, row)
