"""diffusers' context parallelism over gloo processes: what several ranks compute is what one process computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("diffusers")

from tests.hosts.rank_processes import RankProcesses, rank_processes

CASES = "tests.hosts.parallel_cases"


@pytest.fixture(scope="module")
def two() -> Iterator[RankProcesses]:
    with rank_processes(2, CASES) as ranks:
        yield ranks


def agrees(found: list[dict[str, Any]], rounding: float = 2e-6) -> None:
    for of_rank in found:
        assert of_rank["dense"] < rounding
        assert of_rank["sparse"] < rounding
        assert of_rank["sparsity"] > 1e-3
        sparse, alone, dense = of_rank["calls"]
        assert sparse == alone > 0
        assert dense == {}


def test_wan_over_two_ranks_equals_wan_in_one_process(two):
    agrees(two.call("compare", name="wan", grid=(2, 6, 8)))
