"""How alike the needs of real models are: `python -m benchmarks.calibration.public_needs TABLE.csv.gz ...`

For development, on public tables of SVOO's profiling (github.com/Mutual-Luo/SVOO, Apache-2.0), which the pack does not
hold. Prints rank correlations only.
"""

from __future__ import annotations

import csv
import gzip
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from benchmarks.calibration.needs import Array, rank_correlation

_DEPTHS = 40


def read_needs(path: Path) -> Array:
    """(steps, layers, heads) from a public table (Step, Layer, Head, Sparsity; gzipped; its "sparsity" is the need)."""
    with gzip.open(path, "rt") as file:
        rows = np.array([[float(value) for value in row] for row in list(csv.reader(file))[1:]])
    places = rows[:, :3].astype(int) - (1, 0, 0)
    needs = np.zeros(places.max(0) + 1)
    needs[tuple(places.T)] = rows[:, 3]
    return needs


def alikeness(a: Array, b: Array) -> dict[str, float]:
    """Rank correlations of two models' needs, each (steps, layers, heads), as means over steps.

    Returns:
        "heads": over all (layer, head), "within layers": over the heads of a layer, mean over layers, both for models
        of one shape only; "depth": over layers at equal relative depth, of the layers' mean needs.
    """
    a, b = a.mean(0), b.mean(0)
    found = {}
    if a.shape == b.shape:
        found["heads"] = rank_correlation(a, b)
        found["within layers"] = float(np.mean([rank_correlation(*pair) for pair in zip(a, b, strict=True)]))
    depths = np.linspace(0, 1, _DEPTHS)
    by_depth = [np.interp(depths, np.linspace(0, 1, len(x)), x.mean(1)) for x in (a, b)]
    return {**found, "depth": rank_correlation(*by_depth)}


def main(arguments: Sequence[str]) -> int:
    """Print a line for every pair of the tables named."""
    tables = {Path(name).name.removesuffix(".csv.gz"): read_needs(Path(name)) for name in arguments}
    for (first, a), (second, b) in combinations(tables.items(), 2):
        found = ", ".join(f"{name} {value:.3f}" for name, value in alikeness(a, b).items())
        print(f"{first} {a.shape[1:]}, {second} {b.shape[1:]}: {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
