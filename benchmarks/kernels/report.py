"""The results as JSON and as a page of Markdown."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels import row as names
from benchmarks.kernels.process import Outcome
from benchmarks.kernels.row import Row
from benchmarks.kernels.verdicts import Table, Verdict

PACKAGES = ("triton", "comfy-kitchen", "flash-attn-4", "nvidia-cudnn-frontend", "flashinfer-python", "diffusers")
_ASKED = ("device", "driver", "SM clock", "memory clock", "most SM clock", "power limit", "degC")
_MAKERS = ("nvidia", "geforce", "amd", "tesla")
_QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
CONDITIONS = """\
Inputs: bfloat16, batch 1, smooth over the video with noise, views of (1, L, H, D). Times: medians of CUDA events, a
gigabyte written before each run so that nothing is left in the L2 cache. x ideal: time over executed density x the best
dense time of that shape. TFLOP/s: of the two products on exactly computed pairs; the tail's work is not counted.
Extra MiB: peak of torch's allocator beside the inputs, output included. Error: relative L2 against dense attention;
off: against what the call itself should compute (both on sampled rows of every head, float32)."""


@dataclass(frozen=True)
class Results:
    """Everything one run of the bench found."""

    machine: dict[str, Any]
    measured: bool
    red: tuple[str, ...]
    rows: tuple[Row, ...]
    checks: tuple[tuple[str, Outcome], ...]
    jobs: tuple[tuple[str, Outcome], ...]
    verdicts: tuple[tuple[str, tuple[Verdict, ...]], ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "measured": self.measured,
            "red": list(self.red),
            "rows": [row.to_dict() for row in self.rows],
            "checks": [outcome.to_dict(name) for name, outcome in self.checks if not outcome.ok],
            "jobs": [outcome.to_dict(name) for name, outcome in self.jobs],
            "verdicts": {
                variant: [asdict(verdict) | {"word": verdict.word} for verdict in found]
                for variant, found in self.verdicts
            },
        }


def machine(measured: bool) -> dict[str, Any]:
    """Device, driver, clocks and versions. Asks the driver without opening the device in this process."""
    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if not measured:
        return {"device": "none: nothing was timed", **found}
    found |= {"cuda": torch.version.cuda or torch.version.hip, "device": "unknown"}
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader", "--id=0"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
        values = [value.strip() for value in said.splitlines()[0].split(",")]
        found |= dict(zip(_ASKED, values))
    except (OSError, subprocess.SubprocessError, IndexError):
        found["device"] = torch.cuda.get_device_name(0)
        found["driver"] = "nvidia-smi told nothing"
    return found


def short_name(device: str) -> str:
    """A device in file names: "NVIDIA H100 80GB HBM3" is "h100"."""
    words = re.findall(r"[a-z0-9]+", device.lower())
    kept = [word for word in words if word not in _MAKERS and not re.fullmatch(r"\d+gb|hbm\d\w*", word)]
    return "-".join(kept or words) or "unknown"


def result_file(out: Path, kind: str, machine: dict[str, Any], measured: bool, *, part: str = "") -> Path:
    """Where results go, without a suffix: `out` itself if it names a .json file, else a file in it, by the device.

    Args:
        kind: of the bench.
        part: what was asked for where that is not the whole bench; its words end up in the name, so that neither the
            whole nor another part is replaced.
    """
    if out.suffix == ".json":
        return out.with_suffix("")
    where = short_name(str(machine["device"])) if measured else "dry-run"
    return out / "-".join([kind, where, *re.findall(r"[a-z0-9.]+", part.lower())])


def write_files(path: Path, results: dict[str, Any], page: str) -> None:
    """Write results and their page; each file is whole at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = json.dumps(results, indent=2, allow_nan=False)
    for ending, text in (("json", written + "\n"), ("md", page)):
        partial = path.with_name(f"{path.name}.{ending}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path.with_name(f"{path.name}.{ending}"))


def markdown(results: Results) -> str:
    """The page for readers."""
    lines = ["# Kernel bench", "", "  \n".join(f"{key}: {value}" for key, value in results.machine.items()), ""]
    if results.red:
        lines += [f"**Red: no speed is told.** {len(results.red)} wrong:", ""]
        lines += [f"- {said}" for said in results.red] + [""]
    elif not results.measured:
        lines += ["Speeds: **unmeasured**. Sizes and densities below are those of tiny stand-ins on the CPU.", ""]
    lines += ["## Targets (H200, bfloat16, head size 128, 720p)", ""]
    for variant, found in results.verdicts:
        lines += [f"| target, `attend` by {variant} | | |", "|---|---|---|"]
        lines += [f"| {v.target} | **{v.word}** | {v.said} |" for v in found] + [""]
    lines += ["## Checks", "", "| check | verdict | off | s |", "|---|---|---|---|"]
    for row in results.rows:
        if row.kind in ("check", "graph"):
            words = {"unmeasured": "right", "skipped": "skipped"} if row.kind == "check" else {}
            word = words.get(row.status, "" if row.kind == "check" else row.status)
            verdict = ": ".join(filter(None, (word, row.note)))
            lines.append(f"| {row.what} | {verdict} | {_cell(row.off, '.1e')} | {_cell(row.seconds, '.0f')} |")
    lines += ["", "## Rows", "", CONDITIONS, ""]
    table = Table(results.rows)
    ceilings = [row for row in results.rows if row.kind == "ceiling"]
    lines += [f"{row.what}: {_cell(row.value, '.2f') or row.status} {row.note}".rstrip() + "  " for row in ceilings]
    lines.append("")
    lines += _tables(results.rows, table)
    skipped = [row for row in results.rows if row.status == "skipped" and row.kind != "check" and not row.shape]
    if skipped:
        lines += [f"Skipped: {len(skipped)} peers.", "", *(f"- {row.what} {row.by}: {row.note}" for row in skipped), ""]
    bad = [(name, outcome) for name, outcome in results.jobs if not outcome.ok]
    if bad:
        lines += ["Jobs that did not end well, or did not fit:", ""]
        lines += [f"- {name}: {outcome.verdict} ({len(outcome.rows)} rows before that)" for name, outcome in bad] + [""]
    return "\n".join(lines)


_COLUMNS = ("what", "by", "density", "executed", "ms", "+-", "x ideal", "TFLOP/s", "extra MiB", "error", "off", "note")


def _tables(rows: Iterable[Row], table: Table) -> list[str]:
    """A table per shape: dense, ours with the tail's share worked out, peers."""
    shown = [row for row in rows if row.kind in ("dense", "ours", "peer") and (row.shape or row.status != "skipped")]
    lines: list[str] = []
    for shape in dict.fromkeys(row.shape for row in shown):
        lines += [f"### {shape or 'before any shape'}", "", _joined(_COLUMNS), "|" + "---|" * len(_COLUMNS)]
        for row in (row for row in shown if row.shape == shape):
            lines.append(line(row, table))
            if row.what == names.PREPARE_BARE and row.density is not None:
                lines += _tail_lines(shape, row.density, row.by, table)
        lines.append("")
    return lines


def _tail_lines(shape: str, density: float, by: str, table: Table) -> list[str]:
    added = table.tail_seconds(shape, density, by)
    if added is None:
        return []
    cells = [""] * len(_COLUMNS)
    cells[:3] = ["tail, linear1", by, f"{density:.2f}"]
    cells[4] = f"{1e3 * sum(added):.3f}"
    cells[-1] = f"worked out: {1e3 * added[0]:.3f} in attend, {1e3 * added[1]:.3f} in prepare"
    return [_joined(cells)]


def line(row: Row, table: Table) -> str:
    rate = row.flops / row.seconds / 1e12 if row.flops and row.seconds else None
    timed = row.status == "timed" or (row.status == "unmeasured" and not row.note)
    note = row.note if timed else f"{row.status}: {row.note}" if row.note else row.status
    cells = (
        row.what,
        row.by,
        _cell(row.density, ".2f"),
        _cell(row.executed, ".3f"),
        _cell(row.seconds, ".3f", 1e3),
        _cell(row.spread, ".0%"),
        _cell(table.ratio(row) if row.flops else None, ".2f"),
        _cell(rate, ".0f"),
        _cell(row.extra_bytes, ".0f", 2.0**-20),
        _cell(row.error, ".4f"),
        _cell(row.off, ".1e"),
        note,
    )
    return _joined(cells)


def _joined(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: float | None, form: str, factor: float = 1.0) -> str:
    return "" if value is None else format(value * factor, form)
