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


def test_odd_grids_and_batches_go_through_diffusers_uneven_splits(two):
    agrees(two.call("compare", name="wan", grid=(3, 5, 7), batch=2, uneven=True))


def test_an_uneven_number_of_heads_is_dealt_as_diffusers_deals_it(two):
    agrees(two.call("compare", name="wan", grid=(3, 5, 7), heads=3, uneven=True))


def test_half_precision_agrees_to_its_own_rounding(two):
    agrees(two.call("compare", name="wan", grid=(2, 6, 8), batch=2, dtype="float16"), rounding=4e-3)


def test_every_head_keeps_its_own_density_on_whatever_rank_it_is(two):
    policy = {"density": 0.3, "tail": ("none", "mean", "linear0", "linear1")}
    agrees(two.call("compare", name="wan", grid=(2, 6, 8), policy=policy))


@pytest.mark.parametrize("name", ["hunyuan", "hunyuan15"])
def test_joint_text_is_split_with_the_video_and_counts_once(two, name):
    agrees(two.call("compare", name=name, grid=(3, 5, 7), batch=2, uneven=True))


def test_what_cannot_be_dealt_is_refused_with_what_can(two):
    for error in two.call("refusal", heads=3):
        assert error == (
            "3 heads cannot be dealt to 2 ranks: ulysses_degree must be one of 1, 3, or with ulysses_anything=True one "
            "of 2"
        )
    for error in two.call("refusal", ring=True):
        assert error.startswith("ring attention shows a rank only some of the keys") and "log-sum-exp" in error
    for error in two.call("refusal", heads=3, late=True):
        assert error.startswith("3 heads cannot be dealt to 2 ranks")


def test_four_ranks_agree_too() -> None:
    with rank_processes(4, CASES) as four:
        agrees(four.call("compare", name="wan", grid=(2, 6, 8), batch=2))
        agrees(four.call("compare", name="wan", grid=(3, 5, 7), uneven=True))
        agrees(four.call("compare", name="hunyuan15", grid=(3, 5, 7), batch=2, uneven=True))
