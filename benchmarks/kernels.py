"""``python run.py bench kernels [--quick]``: the GPU kernels, right first and then timed, in one run on one machine.

Every variant is checked in a process of its own with a timeout, so that a deadlock is a result and not a hang; while
one is wrong no speed is told. Without a GPU (or with --dry-run) the same checks run on tiny calls by Triton's
interpreter and the tables come out with every speed marked as unmeasured. JSON and Markdown go to benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import triton

from .kernels_plan import CHECKS, DENSITIES, LIMITS, QUICK, SHAPES, errors_of, structured

if TYPE_CHECKING:
    from .kernels_gpu import Row

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
TIMEOUT = 120.0
TARGETS = (
    "attend at most 1.15 x density x best dense",
    "prepare + select at most 3 % of the dense call",
    "the linear tail at most the cost of 3 points of density",
    "extra memory at most K + V once",
    "faster than FlexAttention and comfy_kitchen.sol_attn at equal executed density, with lower error",
)


@dataclass(frozen=True)
class Check:
    """One variant's verdict; `verdict` is "right" or says what is wrong."""

    name: str
    verdict: str
    seconds: float


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench kernels", description="Check, then time, the GPU kernels.")
    parser.add_argument("--quick", action="store_true", help="two shapes, one dtype: under 9 minutes on an H200")
    parser.add_argument("--dry-run", action="store_true", help="no speeds: checks and tables only, on the CPU")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--check", nargs=5, metavar="WORD", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.check:
        return check_here(*options.check)

    measured = torch.cuda.is_available() and not options.dry_run
    checks = check_all("cuda" if measured else "cpu", options.quick)
    wrong = [check for check in checks if check.verdict != "right"]
    rows: list[Row] = []
    limits: dict[str, float] = {}
    if wrong:
        print(f"{len(wrong)} of {len(checks)} variants are wrong: no speeds are told")
    elif measured:
        rows, limits = measure(options.quick)
    report = {
        "machine": machine(measured),
        "measured": measured and not wrong,
        "checks": [asdict(check) for check in checks],
        "ceilings": limits,
        "rows": [asdict(row) for row in rows],
        "targets": list(TARGETS),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    name = "kernels" if measured else "kernels-dry-run"
    (options.out / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    page = markdown(report)
    (options.out / f"{name}.md").write_text(page, encoding="utf-8")
    print(page)
    return 1 if wrong else 0


def check_all(device: str, quick: bool) -> list[Check]:
    """Every variant in its own process. The interpreter knows no right bfloat16 products, so it checks the rest."""
    checks = []
    for dim, dtype, k_block, tail in CHECKS:
        if device == "cpu" and (dtype == "bfloat16" and tail == "linear1" or dim == 128 and quick):
            continue
        words = [str(dim), "float32" if device == "cpu" and dtype == "bfloat16" else dtype, str(k_block), tail, device]
        environment = {**os.environ, **({"TRITON_INTERPRET": "1"} if device == "cpu" else {})}
        start = time.monotonic()
        try:
            command = [sys.executable, "-m", "benchmarks.kernels", "--check", *words]
            limit = TIMEOUT if device == "cuda" else 10 * TIMEOUT
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit, check=False
            )
            said = (done.stdout + done.stderr).strip().splitlines()
            verdict = "right" if done.returncode == 0 else said[-1] if said else f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            verdict = f"no answer within {limit:.0f} s (deadlock?)"
        check = Check(f"D {words[0]}, {words[1]}, keys by {k_block}, tail {tail}", verdict, time.monotonic() - start)
        print(f"check: {check.name}: {check.verdict} ({check.seconds:.0f} s)", flush=True)
        checks.append(check)
    return checks


def check_here(dim: str, dtype: str, k_block: str, tail: str, device: str) -> int:
    tiny = device == "cpu"
    found = errors_of(int(dim), getattr(torch, dtype), int(k_block), tail, torch.device(device), tiny)
    wrong = [f"{name} is off by {error:.1e}" for name, error in found if not error <= LIMITS[dtype]]
    if wrong:
        print("; ".join(wrong) + f", the limit is {LIMITS[dtype]:.0e}")
    return int(bool(wrong))


def measure(quick: bool) -> tuple[list[Row], dict[str, float]]:
    from . import kernels_gpu as gpu

    repeats = 5 if quick else 15
    rows: list[Row] = []
    for shape in SHAPES:
        if quick and shape.name not in QUICK:
            continue
        qkv = structured(shape, torch.device("cuda"), torch.bfloat16)
        dense = gpu.dense_rows(shape, qkv, repeats)
        best = min(row.seconds for row in dense if row.seconds is not None)
        rows += dense
        for density in DENSITIES:
            rows += gpu.our_rows(shape, qkv, density, best, repeats)
            if not quick or density == DENSITIES[-1]:
                rows += gpu.peer_rows(shape, qkv, density, best, repeats)
            print(f"{shape.name}, density {density}: done", flush=True)
        del qkv
        torch.cuda.empty_cache()
    return rows, gpu.ceilings(repeats)


def machine(measured: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "device": "none: nothing was timed",
    }
    if measured:
        properties = torch.cuda.get_device_properties(0)
        found |= {"device": properties.name, "memory GiB": round(properties.total_memory / 2**30, 1)}
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit", "--format=csv,noheader"]
        try:
            said = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]
            found["driver, clocks, power limit"] = said
        except (OSError, subprocess.CalledProcessError, IndexError):
            found["driver, clocks, power limit"] = "nvidia-smi told nothing"
    return found


def markdown(report: dict[str, Any]) -> str:
    """The page for readers."""
    lines = ["# Kernel bench", "", "  \n".join(f"{key}: {value}" for key, value in report["machine"].items()), ""]
    lines += ["| check | verdict | s |", "|---|---|---|"]
    lines += [f"| {c['name']} | {c['verdict']} | {c['seconds']:.0f} |" for c in report["checks"]]
    if report["measured"]:
        lines += ["", *(f"{name}: {value:.1f}  " for name, value in report["ceilings"].items()), ""]
        columns = ("shape", "what", "density", "executed", "ms", "x ideal", "TFLOP/s", "extra MiB", "error", "note")
        lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += [line(row) for row in report["rows"]]
    else:
        lines += ["", f"Speeds: **unmeasured**. Shapes a run on a GPU times: {', '.join(s.name for s in SHAPES)}."]
        lines += ["", "| target (H200, bfloat16, head size 128, 720p) | measured |", "|---|---|"]
        lines += [f"| {target} | unmeasured |" for target in report["targets"]]
    return "\n".join(lines) + "\n"


def line(row: dict[str, Any]) -> str:
    def cell(value: float | None, form: str, factor: float = 1.0) -> str:
        return "" if value is None else format(value * factor, form)

    cells = (
        row["shape"],
        row["what"],
        cell(row["density"], ".2f"),
        cell(row["executed"], ".3f"),
        cell(row["seconds"], ".2f", 1e3),
        cell(row["of_ideal"], ".2f"),
        cell(row["tflops"], ".0f"),
        cell(row["extra_mib"], ".0f"),
        cell(row["error"], ".4f"),
        row["note"],
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
