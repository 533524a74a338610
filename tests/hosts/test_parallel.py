"""diffusers' context parallelism over gloo processes: what several ranks compute is what one process computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from draftattention.draftattn_core.hosts.diffusers.parallel import ParallelismError, context_parallel_plan
from tests.diffusers_models import build
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


@pytest.mark.parametrize("name", ["vace", "skyreels", "skyreels forcing"])
def test_relatives_of_wan_without_a_plan_of_their_own_are_split_by_ours(two, name):
    agrees(two.call("compare", name=name, grid=(3, 5, 7), batch=2, uneven=True))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("wan_animate", "face adapter pairs the tokens of each frame with the face of that moment"),
        ("hunyuan_i2v", "token_replace treats the first frame's tokens apart"),
    ],
)
def test_a_model_that_no_plan_can_split_is_refused_with_the_reason(name, reason):
    with pytest.raises(ParallelismError, match=reason):
        context_parallel_plan(build(name))


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


def is_one_run(found: list[dict[str, Any]], rounding: float = 1e-4) -> dict[str, Any]:
    """Checks that the ranks did what one process does, and that all of them say the same; what they say."""
    ranks = found[0]["ranks"]
    for of_rank in found:
        assert of_rank["distance"] < rounding
        assert of_rank["sum"] == found[0]["sum"]
        assert of_rank["ranks"] == ranks
    alone = found[0]["alone"]
    # A call pays for the dearest tail of its heads, and each rank for that of its own.
    assert ranks["work_density"] <= alone.pop("work_density") + 1e-4
    for name, value in alone.items():
        assert ranks[name] == approximately(value), name
    return ranks


def approximately(value: Any) -> Any:
    """`value` with its numbers to rounding."""
    if isinstance(value, dict):
        return {key: approximately(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(approximately(each) for each in value)
    return pytest.approx(value, rel=1e-3, abs=1e-4) if isinstance(value, float) else value


def test_a_guided_run_over_ranks_is_one_run_with_one_report(two):
    told = is_one_run(two.call("sample_both_ways"))
    assert told["calls"] == told["calls_sparse"] == 8 * 2 * 2
    assert all(len(tails) == 4 for tails in told["tails"].values())


def test_probed_tails_are_reported_for_all_heads_in_order(two):
    told = is_one_run(two.call("sample_both_ways", auto_tail=True))
    assert set(map(len, told["tails"].values())) == {4}


def test_budgets_rest_on_the_measured_errors_of_all_heads(two):
    found = two.call("sample_both_ways", budgets="error")
    told = is_one_run(found)
    orders = found[0]["orders"]
    assert found[1]["orders"] == orders
    assert any(sorted(order[:2]) != [0, 1] for order in orders), "heads were dealt as they came"
    assert [sorted(len(heads) for heads in row["after"].values()) for row in told["budgets"]][0] == [4, 4]


def test_a_schedule_is_the_same_steps_and_layers_on_every_rank(two):
    # Dense for two steps of eight, then falling; the last layer dense throughout.
    points = ((0.0, 1.0), (0.25, 1.0), (0.25, 0.6), (0.9, 0.2))
    told = is_one_run(two.call("sample_both_ways", schedule={"points": points, "dense_layers": (-1,)}))
    assert told["calls_dense"] == {"schedule": 2 * 2, "dense layer": 8 * 2} and told["calls_sparse"] == 6 * 2


def test_a_profile_made_over_ranks_is_that_of_one_process_head_by_head_and_masks_are_told_not_recorded(two):
    found = two.call("record_both_ways")
    alone = found[0]["alone"]
    counted = torch.tensor(alone["counts"]) > 0
    assert counted.any(0).all(), "some heads were not measured"
    for of_rank in found:
        assert of_rank["ranks"]["counts"] == alone["counts"] and of_rank["ranks"]["tails"] == alone["tails"]
        for name in ("squared", "norms", "gains"):
            ours, theirs = (torch.tensor(tables[name])[counted] for tables in (of_rank["ranks"], alone))
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        # Heads differ, so an exchange of two would show.
        assert (torch.tensor(alone["norms"]).diff(dim=-1).abs() > 1e-3).any()
        assert not of_rank["masks"]
        assert "masks are recorded by one process alone: this run over several ranks records none" in of_rank["notes"]


def test_a_profile_gives_every_head_its_own_budget_on_whatever_rank_it_is(two):
    found = two.call("sample_both_ways", profiled=True)
    told = is_one_run(found)
    assert found[0]["orders"] == found[1]["orders"]
    assert any(sorted(order[:2]) != [0, 1] for order in found[0]["orders"]), "heads were dealt as they came"
    assert told["budgets"], "the profile was not used"


@pytest.mark.parametrize(
    "skip",
    [{"rule": "easycache", "threshold": 2.0}, {"rule": "forecast", "threshold": 2.0}, {"rule": "spread", "share": 0.5}],
)
def test_the_decision_to_skip_a_step_is_one_decision_equal_to_that_of_one_process(two, skip):
    told = is_one_run(two.call("sample_both_ways", skip={**skip, "first": 1}))
    assert len([outcome for _, outcome, *_ in told["decisions"] if outcome != "computed"]) > 1


@pytest.mark.parametrize(
    ("fault", "reason", "calls"), [("error", "error", 1), ("memory", "out of memory", 1), ("reading", None, 2)]
)
def test_a_rank_that_must_go_dense_takes_all_with_it(two, fault, reason, calls):
    found = two.call("sample_with_fault", fault=fault)
    for of_rank in found:
        assert of_rank["dense"] == {reason or "unknown token grid": calls}
        assert of_rank["calls"] == 8 * 2 * 2
        assert of_rank["told"] == found[0]["told"]
        assert of_rank["sum"] == found[0]["sum"]


@pytest.mark.parametrize("fault", ["cache", "store"])
def test_a_step_cache_that_fails_on_one_rank_is_forgotten_by_all(two, fault):
    found = two.call("sample_with_fault", fault=fault)
    reasons = [reason for _, _, reason, *_ in found[0]["told"]["decisions"]]
    assert reasons.count("error") == 1
    for of_rank in found:
        assert [reason for _, _, reason, *_ in of_rank["told"]["decisions"]] == reasons
        assert of_rank["sum"] == found[0]["sum"]


def test_a_step_that_one_rank_cannot_skip_is_computed_by_all(two):
    found = two.call("sample_with_fault", fault="history")
    decisions = [of_rank["told"]["decisions"] for of_rank in found]
    outcomes, reasons = ([[decision[at] for decision in of_rank] for of_rank in decisions] for at in (1, 2))
    assert found[0]["sum"] == found[1]["sum"] and outcomes[0] == outcomes[1]
    for reason, times in (("another rank computes it", [1, 0]), ("a branch without history", [0, 1])):
        assert [of_rank.count(reason) for of_rank in reasons] == times


@pytest.fixture(scope="module")
def four() -> Iterator[RankProcesses]:
    with rank_processes(4, CASES) as ranks:
        yield ranks


def test_four_ranks_agree_too(four) -> None:
    agrees(four.call("compare", name="wan", grid=(2, 6, 8), batch=2))
    agrees(four.call("compare", name="wan", grid=(3, 5, 7), uneven=True))
    agrees(four.call("compare", name="hunyuan15", grid=(3, 5, 7), batch=2, uneven=True))
    is_one_run(four.call("sample_both_ways", budgets="error"))


@pytest.mark.parametrize("how", ["sleep", "exit"])
def test_a_rank_that_is_gone_ends_the_run_with_one_sentence(four, how) -> None:
    said = four.call("end_in_silence", rank=2, how=how, timeout=2.0)
    for rank in (0, 1, 3):
        assert said[rank] == (
            f"rank {rank} of 4: another rank ended or did not answer within 2 s, so this run ends here; the other "
            "rank's own output says why (in time)"
        )


def test_a_rank_that_is_gone_in_the_middle_of_diffusers_exchange_is_told_alike(two) -> None:
    said = two.call("end_in_silence", rank=1, how="exchange", timeout=20.0)
    assert said[0] == (
        "rank 0 of 2: another rank ended or did not answer within 20 s, so this run ends here; the other rank's own "
        "output says why (in time)"
    )
