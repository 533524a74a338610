"""What masks of a large model take, from the formats in which this package keeps them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from benchmarks.calibration.published import mask_layout
from draftattention.draftattn_core import Layout, Settings, TokenGrid
from draftattention.draftattn_core.geometry.layout import build_tables
from draftattention.draftattn_core.method.calibatt.displacement import DisplacementMask
from draftattention.draftattn_core.method.calibatt.intervals import MOST_RUNS, Intervals
from draftattention.draftattn_core.method.calibatt.portable import PortableScores, PortableVolume
from draftattention.draftattn_core.run.calibration import calibration_forms
from draftattention.draftattn_core.run.error_curve import CURVE_DENSITIES
from draftattention.draftattn_core.run.figures import BUCKETS, figure_forms
from draftattention.draftattn_core.run.fingerprint import Fingerprint

WAN_14B = Fingerprint("wan", 40, 40, 128)
# 832 x 480 and 1280 x 720 pixels, 81 frames.
GRIDS = {"480p": TokenGrid(21, 30, 52), "720p": TokenGrid(21, 45, 80)}
STEPS = 50
# GB of arXiv 2603.05503 for Wan at 720p: as they come, trimmed per layer, runs merged, late steps grouped.
PUBLISHED_GB = (52.0, 21.5, 6.3, 3.6)


@dataclass(frozen=True)
class MaskMemory:
    """Bytes of one expert's masks.

    Attributes:
        longest_lists: interval lists with a run in every second block, the longest there can be.
        merged_lists: lists of at most `MOST_RUNS` runs a row, as a run keeps them.
        bits: a bit for each step, layer, head and block pair.
        votes: as a calibration's file keeps them.
        scores: portable scores as a run keeps them, made in the raster order of the masks.
        our_scores, our_sets: portable scores and sets of displacements made in our layout.
        profile: figures of a profile, without masks.
    """

    longest_lists: int
    merged_lists: int
    bits: int
    votes: int
    scores: int
    our_scores: int
    our_sets: int
    profile: int


def mask_memory(model: Fingerprint, grid: TokenGrid, steps: int) -> MaskMemory:
    """Bytes of each form for a model on a grid, nothing of it allocated."""
    layout, ours = mask_layout(grid), Settings().layout(grid)
    forms = calibration_forms(model, layout)
    (_, heads, rows, columns), votes = forms["votes"]
    maps = steps * model.layers

    def lists(runs: int) -> int:
        bounds = torch.empty(heads, rows, min(runs, math.ceil(columns / 2)), 2, dtype=torch.int16, device="meta")
        return maps * Intervals(bounds, columns).bytes

    def portable(of: Layout) -> tuple[int, int]:
        counts = PortableScores.for_layout(1, build_tables(of))
        shape = (heads, *counts.pairs.shape)
        seen = torch.empty(shape[1:], dtype=torch.bool, device="meta")
        volume = PortableVolume(counts.cell, torch.empty(shape, dtype=torch.float16, device="meta"), seen, grid)
        flags = torch.empty(heads, dtype=torch.bool, device="meta")
        kept = DisplacementMask(counts.cell, torch.empty(shape, dtype=torch.bool, device="meta"), flags)
        return BUCKETS * model.layers * volume.bytes, BUCKETS * model.layers * kept.bytes

    figures = figure_forms(model.layers, model.heads, len(CURVE_DENSITIES)).values()
    return MaskMemory(
        lists(columns),
        lists(MOST_RUNS),
        maps * math.ceil(heads * rows * columns / 8),
        maps * heads * rows * columns * votes.itemsize,
        portable(layout)[0],
        *portable(ours),
        sum(math.prod(shape) * dtype.itemsize for shape, dtype in figures),
    )
