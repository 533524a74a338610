"""CPU speed and memory of sparse attention beside scaled_dot_product_attention, in one run.

`python -m benchmarks.cpu [--quick] [--threads N] [--out DIR]` times, for float32 and bfloat16, head sizes 64 and 128,
8k and 16k tokens: dense attention, and ours at three densities with selection and tail included. Every figure of a
table row comes from the same process; peak memory is taken in a fresh process per case. Rows are kept as they come in
`DIR/full.partial.jsonl`, and the same command goes on where it was stopped; remove that file after an edit of what is
timed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from draftattention.draftattn_core import Layout, Policy, TableCache, TokenGrid, attend
from draftattention.draftattn_core.method.policy import TailName
from draftattention.draftattn_core.method.tail.formula import tail_key_equivalents

HEADS = 2
GRIDS = {8192: TokenGrid(8, 32, 32), 16384: TokenGrid(16, 32, 32)}
DENSITIES = (0.5, 0.25, 0.1)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TARGET = 0.7


@dataclass(frozen=True)
class Case:
    dtype: str
    head_dim: int
    tokens: int
    density: float
    tail: TailName


@dataclass(frozen=True)
class Row:
    """One case: times are medians in seconds; `share_of_ideal` is speed-up x executed density (1 = ideal)."""

    dtype: str
    head_dim: int
    tokens: int
    density: float
    tail: str
    executed_density: float
    work_density: float
    dense_seconds: float
    sparse_seconds: float
    speed_up: float
    share_of_ideal: float
    dense_peak_mib: float | None
    sparse_peak_mib: float | None


def case_of(row: Row) -> Case:
    return Case(row.dtype, row.head_dim, row.tokens, row.density, row.tail)  # type: ignore[arg-type]


def inputs(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(case.tokens + case.head_dim)
    q, k, v = (
        torch.randn(1, HEADS, case.tokens, case.head_dim, generator=generator).to(DTYPES[case.dtype]) for _ in range(3)
    )
    return q, k, v


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def sparse_call(case: Case) -> Callable[[], torch.Tensor]:
    q, k, v = inputs(case)
    layout, policy, cache = Layout(GRIDS[case.tokens]), Policy(density=case.density, tail=case.tail), TableCache()
    return lambda: attend(q, k, v, layout, policy, backend="torch", cache=cache).out


def dense_call(case: Case) -> Callable[[], torch.Tensor]:
    q, k, v = inputs(case)
    return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)


def measure(case: Case, dense_seconds: float, repeats: int, memory: bool) -> Row:
    q, k, v = inputs(case)
    layout = Layout(GRIDS[case.tokens])
    executed = float(attend(q, k, v, layout, Policy(density=case.density, tail=case.tail), backend="torch").density())
    pooled = tail_key_equivalents(case.tail, -(-case.tokens // layout.k_block), case.head_dim) / case.tokens
    seconds = median_seconds(sparse_call(case), repeats)
    return Row(
        **asdict(case),
        executed_density=executed,
        work_density=executed + pooled,
        dense_seconds=dense_seconds,
        sparse_seconds=seconds,
        speed_up=dense_seconds / seconds,
        share_of_ideal=dense_seconds / seconds * executed,
        dense_peak_mib=peak_mib(case, "dense") if memory else None,
        sparse_peak_mib=peak_mib(case, "sparse") if memory else None,
    )


def peak_mib(case: Case, which: str) -> float | None:
    """Peak memory of one call above its inputs, in a fresh process; None where the system does not tell (not Linux)."""
    command = [sys.executable, "-m", "benchmarks.cpu", "--peak", which, json.dumps(asdict(case))]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return float(found) if found else None


def report_peak(which: str, case: Case) -> None:
    """Child process: print the peak in MiB, or nothing where /proc cannot reset and tell it."""
    status, refs = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists() or not refs.exists():
        return

    def kib(field: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))

    run = sparse_call(case) if which == "sparse" else dense_call(case)
    try:
        refs.write_text("5")
    except OSError:
        return
    before = kib("VmRSS")
    run()
    print(max(0, kib("VmHWM") - before) / 1024)


def cases(quick: bool) -> Iterator[Case]:
    for dtype in DTYPES:
        for head_dim in (64,) if quick else (64, 128):
            for tokens in (16384,) if quick else tuple(GRIDS):
                for tail in (Policy().tail, "none"):
                    for density in DENSITIES:
                        assert isinstance(tail, str)
                        yield Case(dtype, head_dim, tokens, density, tail)


def table(rows: list[Row]) -> str:
    lines = [
        "| dtype | head size | tokens | tail | density | + tail's work | dense s | sparse s | speed-up | of 1/density "
        "| peak MiB dense / sparse |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        memory = "-" if row.dense_peak_mib is None else f"{row.dense_peak_mib:.0f} / {row.sparse_peak_mib:.0f}"
        lines.append(
            f"| {row.dtype} | {row.head_dim} | {row.tokens} | {row.tail} | {row.executed_density:.3f} "
            f"| {row.work_density:.3f} | {row.dense_seconds:.3f} | {row.sparse_seconds:.3f} | {row.speed_up:.2f}x "
            f"| {row.share_of_ideal:.2f} | {memory} |"
        )
    return "\n".join(lines)


def verdict(rows: list[Row]) -> str:
    """The target of the bench, met or missed, per density: worst share of the ideal in float32 at 16k tokens."""
    default = Policy().tail
    lines = []
    for density in DENSITIES:
        chosen = [
            row
            for row in rows
            if row.dtype == "float32" and row.tokens == 16384 and row.tail == default and row.density == density
        ]
        worst = min(row.share_of_ideal for row in chosen)
        by_work = min(row.speed_up * row.work_density for row in chosen)
        lines.append(
            f"- density {density}: speed-up is {worst:.2f}/density at worst (target {TARGET}/density: "
            f"{'met' if worst >= TARGET else 'missed'}); counting the tail's work in the density, {by_work:.2f}"
        )
    return "\n".join(lines)


def kept_rows(path: Path, conditions: str, memory: bool) -> list[Row]:
    """Rows that a stopped run of the same conditions left, with or without the peak memory."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            made = json.loads(line)
            if (made["conditions"], made["memory"]) == (conditions, memory):
                found.append(Row(**made["row"]))
        except (ValueError, KeyError, TypeError):
            continue  # the line that was being written, or one of an older form
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="head size 64 at 16k tokens only")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-memory", action="store_true", help="leave the peak memory out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu"))
    parser.add_argument("--peak", nargs=2, metavar=("WHICH", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads < 1 or arguments.repeats < 1:
        parser.error("--threads and --repeats need at least 1")
    if arguments.peak:
        report_peak(arguments.peak[0], Case(**json.loads(arguments.peak[1])))
        return

    torch.set_num_threads(arguments.threads)
    layout = Layout(GRIDS[16384])
    conditions = (
        f"{platform.machine()} CPU, {arguments.threads} thread(s), torch {torch.__version__}; batch 1, {HEADS} heads, "
        f"random normal inputs, blocks {layout.q_block}/{layout.k_block}, backend torch; baseline "
        f"scaled_dot_product_attention of the same dtype in the same run; medians of {arguments.repeats}; "
        "selection and tail included; density is what was executed."
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = "quick" if arguments.quick else "full"
    partial = arguments.out / f"{name}.partial.jsonl"
    memory = not arguments.no_memory
    rows = kept_rows(partial, conditions, memory)
    done = {case_of(row) for row in rows}
    dense: dict[tuple[str, int, int], float] = {}
    todo = list(cases(arguments.quick))
    for case in tqdm([case for case in todo if case not in done], initial=len(done), total=len(todo), unit="case"):
        key = (case.dtype, case.head_dim, case.tokens)
        if key not in dense:
            dense[key] = median_seconds(dense_call(case), arguments.repeats)
        rows.append(measure(case, dense[key], arguments.repeats, memory))
        with partial.open("a") as file:
            file.write(json.dumps({"conditions": conditions, "memory": memory, "row": asdict(rows[-1])}) + "\n")
    text = f"{conditions}\n\n{table(rows)}\n\n{verdict(rows)}\n"
    print(text)
    (arguments.out / f"{name}.md").write_text(text)
    (arguments.out / f"{name}.json").write_text(
        json.dumps({"conditions": conditions, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
    )
    partial.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
