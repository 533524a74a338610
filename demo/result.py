"""What the demo leaves behind: the video, the contact sheet, the density map, the figures."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from demo.methods import COMPOSED, DENSE, OURS, PAPER
from demo.pictures import contact_sheet
from demo.work import work
from draftattention.draftattn_core.views.charts import stack
from draftattention.draftattn_core.views.metrics import flicker, psnr, ssim

PANEL_SCALE = 4
FRAME_RATE = 8
IDENTICAL = "identical"
TITLES = {
    DENSE: "dense",
    PAPER: "DraftAttention as published",
    OURS: "ours: 3-D tiles + linear tail",
    COMPOSED: "ours + skipped steps",
}


@dataclass
class MethodRun:
    """One method's run.

    Attributes:
        frames: uint8 (T, H, W, 3).
        report: `RunReport.to_dict()` of the run.
        density_map: picture of steps x layers.
        total_seconds: wall time of the sampling.
    """

    frames: np.ndarray
    report: dict[str, Any]
    density_map: Image.Image
    total_seconds: float


def figures(run: MethodRun, dense: MethodRun, share: float) -> dict[str, Any]:
    """A method's entry in report.json; quality is measured against the dense run of the same seed.

    Args:
        share: of attention in a dense evaluation.
    """
    mine, reference = (torch.from_numpy(frames).float() / 255 for frames in (run.frames, dense.frames))
    itself = run is dense
    return {
        "executed_density": run.report["executed_density"],
        "sparse_density": run.report["sparse_density"],
        "work_density": run.report["work_density"],
        "psnr_db": None if itself else _finite(psnr(mine, reference)),
        "ssim": None if itself else ssim(mine, reference),
        "flicker": None if itself or len(mine) < 2 else flicker(mine, reference),
        "attention_seconds": run.report["attention_seconds"],
        "total_seconds": run.total_seconds,
        "calls_sparse": run.report["calls_sparse"],
        "calls_dense": run.report["calls_dense"],
        "evaluations_computed": run.report["evaluations"]["computed"],
        "work": work(run.report, share),
    }


def _finite(value: float) -> float | None:
    """None for what strict JSON has no number for: the PSNR of a clip that is the reference to the bit."""
    return value if math.isfinite(value) else None


def is_identical(row: Mapping[str, Any]) -> bool:
    """Whether a method's entry in report.json is of a run that gave the dense run's very video."""
    return row["psnr_db"] is None and row["ssim"] is not None


def cpu_name() -> str:
    """What the processor calls itself, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def full_report(
    runs: dict[str, MethodRun],
    *,
    host: str,
    device: str,
    grid: tuple[int, int, int],
    steps: int,
    baseline: str,
    share: float,
) -> dict[str, Any]:
    """The whole of report.json, schema 1.

    Args:
        share: of attention in a dense evaluation, for the runs' work.
    """
    return {
        "schema": 1,
        "host": host,
        "device": device,
        "torch": torch.__version__,
        "grid": list(grid),
        "tokens": grid[0] * grid[1] * grid[2],
        "steps": steps,
        "methods": {name: figures(run, runs[DENSE], share) for name, run in runs.items()},
        "baseline": baseline,
    }


def table(report: dict[str, Any]) -> str:
    """The figures as text, one line per method, and in the last line what they promise."""
    lines = [
        f"{report['tokens']} tokens ({'x'.join(map(str, report['grid']))}), {report['steps']} steps, {report['host']}, "
        f"{report['device']}, torch {report['torch']}; baseline: {report['baseline']}",
        "",
        f"{'method':8} {'steps':>9} {'attention':>10} {'work':>6} {'PSNR':>9} {'SSIM':>7} {'flicker':>8} "
        f"{'attention':>10} {'total':>8}",
        f"{'':8} {'computed':>9} {'density':>10} {'':>6} {'dB':>9} {'':>7} {'':>8} {'seconds':>10} {'seconds':>8}",
    ]
    for name, row in report["methods"].items():
        cells = [
            _cell(row["evaluations_computed"], 9, 0),
            _cell(row["executed_density"], 10, 3),
            _cell(row["work"], 6, 3),
            f"{IDENTICAL:>9}" if is_identical(row) else _cell(row["psnr_db"], 9, 2),
            _cell(row["ssim"], 7, 4),
            _cell(row["flicker"], 8, 4),
            _cell(row["attention_seconds"], 10, 1),
            _cell(row["total_seconds"], 8, 1),
        ]
        lines.append(f"{name:8} " + " ".join(cells))
    return "\n".join([*lines, "", promise(report)])


def promise(report: dict[str, Any]) -> str:
    """How many times faster the composed run is than the dense one, and how close it comes to its video."""
    dense, ours = report["methods"][DENSE], report["methods"][COMPOSED]
    if is_identical(ours):
        near = f"{IDENTICAL} to its video"
    else:
        near = f"PSNR {ours['psnr_db']:.1f} dB and SSIM {ours['ssim']:.3f} against its video"
    return (
        f"{TITLES[COMPOSED]}: {dense['total_seconds'] / ours['total_seconds']:.1f}x as fast as dense on this machine "
        f"({ours['total_seconds']:.1f} s for {dense['total_seconds']:.1f} s) at {ours['work']:.2f} of its work, {near}"
    )


def _cell(value: float | None, width: int, digits: int) -> str:
    return f"{'-' if value is None else format(value, f'.{digits}f'):>{width}}"


def _panel(frame: np.ndarray, title: str, note: str) -> Image.Image:
    height, width = frame.shape[0] * PANEL_SCALE, frame.shape[1] * PANEL_SCALE
    panel = Image.new("RGB", (width, height + 44), "white")
    draw = ImageDraw.Draw(panel)
    draw.text((8, 4), title, fill="black", font=ImageFont.load_default(16))
    draw.text((8, 24), note, fill="#444444", font=ImageFont.load_default(13))
    picture = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
    panel.paste(picture, (0, 44))
    return panel


def _note(row: dict[str, Any]) -> str:
    spent = f"work {row['work']:.2f}, {row['total_seconds']:.0f} s"
    if is_identical(row):
        return f"{spent}, {IDENTICAL}"
    return spent if row["psnr_db"] is None else f"{spent}, PSNR {row['psnr_db']:.1f} dB"


def side_by_side(runs: dict[str, MethodRun], report: dict[str, Any]) -> list[Image.Image]:
    """The clips next to each other, one picture per frame, titles and figures above them."""
    pictures = []
    for index in range(len(runs[DENSE].frames)):
        panels = [
            _panel(run.frames[index], TITLES.get(name, name), _note(report["methods"][name]))
            for name, run in runs.items()
        ]
        picture = Image.new("RGB", (sum(p.width for p in panels) + 8 * (len(panels) - 1), panels[0].height), "white")
        left = 0
        for panel in panels:
            picture.paste(panel, (left, 0))
            left += panel.width + 8
        pictures.append(picture)
    return pictures


def write_video(pictures: list[Image.Image], path: Path) -> None:
    """H.264 in an mp4, forwards and backwards so that a short clip can be watched in a loop."""
    order = [*pictures, *pictures[-2:0:-1]] * 2
    width, height = (size - size % 2 for size in pictures[0].size)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "16"}
        for picture in order:
            frame = av.VideoFrame.from_image(picture.crop((0, 0, width, height)))
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def write(out: Path, runs: dict[str, MethodRun], report: dict[str, Any]) -> list[Path]:
    """Write every file of the demo into `out`; returns their paths."""
    names = ("side_by_side.mp4", "contact_sheet.png", "density_map.png", "report.json", "side_by_side.png")
    paths = [out / name for name in names]
    pictures = side_by_side(runs, report)
    write_video(pictures, paths[0])
    pictures[len(pictures) // 2].save(paths[4], optimize=True)
    contact_sheet([run.frames for run in runs.values()], list(runs), paths[1], scale=3)
    stack([run.density_map for name, run in runs.items() if name != DENSE]).save(paths[2])
    paths[3].write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    return paths
