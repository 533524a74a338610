"""The report: every call counted once, densities by hand, JSON that any reader takes."""

from __future__ import annotations

import json
import math
import threading

import pytest
import torch

from draftattention.draftattn_core.run import skips
from draftattention.draftattn_core.run.evaluation import Outcome
from draftattention.draftattn_core.run.report import (
    Call,
    DenseReason,
    Position,
    RunReport,
)
from draftattention.draftattn_core.run.step_cache import StepCacheSettings
from draftattention.draftattn_core.run.step_cache.log import Decision, Reason


def position(step: int = 0, layer: int = 0) -> Position:
    return Position(step, step / 2, layer, 2)


def sparse(
    density: float, pairs: float, at: Position | None = None, *, seconds: float = 1.0, tail: float = 0.0
) -> Call:
    return Call(at or position(), torch.tensor(density), None, pairs, lambda: seconds, tail)


def dense(reason: DenseReason, pairs: float, at: Position | None = None, *, seconds: float = 2.0) -> Call:
    return Call(at, None, reason, pairs, lambda: seconds)


def filled() -> RunReport:
    report = RunReport()
    report.add(dense(DenseReason.SCHEDULE, 100, position(0, 0)))
    report.add(dense(DenseReason.DENSE_LAYER, 100, position(0, 1)))
    report.add(sparse(0.25, 100, position(1, 0), tail=0.05))
    report.add(sparse(0.75, 300, position(1, 1)))
    report.add(dense(DenseReason.CROSS_ATTENTION, 0))
    return report


def test_executed_density_by_hand() -> None:
    report = filled()
    # (1 * 100 + 1 * 100 + 0.25 * 100 + 0.75 * 300) / 600; cross-attention stays out.
    assert report.executed_density() == pytest.approx(450 / 600)
    assert report.sparse_density() == pytest.approx(250 / 400)
    assert report.work_density() == pytest.approx((450 + 0.05 * 100) / 600)


def test_every_call_is_in_exactly_one_counter() -> None:
    report = filled()
    assert report.calls_sparse == 2
    assert report.calls_dense() == {"schedule": 1, "dense layer": 1, "not self-attention": 1}
    assert report.calls_sparse + sum(report.calls_dense().values()) == len(report.calls)


def test_times_count_the_video_self_attention_only() -> None:
    report = filled()
    assert report.attention_seconds() == 2 + 2 + 1 + 1
    assert report.mean_seconds() == (1.0, 2.0)
    assert report.summary().endswith("; sparse call 2.0x faster than dense call")


def test_a_step_is_as_long_as_its_evaluations_of_the_whole_model() -> None:
    report = filled()
    # Each the condition and the uncondition in two evaluations. Step 2: skipped by a cache, no attention call.
    for step, seconds in ((0, 2.0), (0, 1.0), (1, 1.0), (1, 1.0), (2, 0.001)):
        report.add_evaluation(step, lambda seconds=seconds: seconds)  # type: ignore[misc]
    assert report.step_seconds() == {0: 3.0, 1: 2.0}
    # The dense step is the first: what it took stands for no other, its calls of 2 s do.
    assert report.median_step_seconds() == (2.0, 4.0)
    assert report.summary().endswith("; executed density 0.75; sparse step 2.0x faster than dense step")
    assert report.to_dict()["step_seconds"] == {"0": 3.0, "1": 2.0}


def test_a_first_step_that_pays_for_compiling_does_not_decide() -> None:
    report = RunReport()
    for step, seconds in enumerate((30.0, 4.0, 9.0, 2.0, 2.5)):
        at = position(step)
        report.add(dense(DenseReason.SCHEDULE, 1, at) if step < 2 else sparse(0.2, 1, at))
        report.add_evaluation(step, lambda seconds=seconds: seconds)  # type: ignore[misc]
    assert report.median_step_seconds() == (2.5, 4.0)
    # Five steps of 4 s, the first as long as it was, over what was spent.
    assert report.speed_up() == pytest.approx((30 + 4 * 4) / (30 + 4 + 9 + 2 + 2.5))


def speed_run(first: float, *, layers: int = 4, timed: bool = True) -> RunReport:
    """20 steps, the first dense, 4 sparse, 15 forecast. An evaluation takes 4 s outside attention, dense attention 6 s,
    sparse 2 s; the first takes `first` times as long, in its first attention call too."""
    report = RunReport(skip=StepCacheSettings("forecast"))
    for step in range(5):
        times = [(1.5 if step == 0 else 0.5) * (6 / 1.5 / layers)] * layers
        times[0] *= first if step == 0 else 1.0
        whole = 10.0 * first if step == 0 else 4.0 + sum(times)
        for layer, seconds in enumerate(times):
            seconds, at = seconds if timed else 0.0, position(step, layer)
            report.add(
                dense(DenseReason.SCHEDULE, 1, at, seconds=seconds)
                if step == 0
                else sparse(0.25, 1, at, seconds=seconds)
            )
        report.add_evaluation(step, lambda whole=whole: whole)  # type: ignore[misc]
        report.add_outcome("computed", step)
    for step in range(5, 20):
        report.add_outcome("forecast", step)
    return report


@pytest.mark.parametrize("first", [1.0, 1.5, 2.0, 5.0])
def test_the_only_dense_step_may_pay_for_compiling_and_the_gain_is_not_exaggerated(first: float) -> None:
    report = speed_run(first)
    # Dense evaluations of 10 s beside four of 6 s; the first step would have been as long in a dense run.
    assert report.speed_up() == pytest.approx((10 * first + 19 * 10) / (10 * first + 4 * 6))
    assert report.work() == pytest.approx(5 / 20 * (0.4 + 0.6 * (1 + 4 * 0.25) / 5))
    assert report.median_step_seconds() == (pytest.approx(6.0), pytest.approx(10.0))


def test_where_nothing_but_the_first_step_tells_how_long_dense_takes_no_factor_is_said() -> None:
    untimed, alone = speed_run(2.0, timed=False), RunReport(outcomes={"computed": 1, "forecast": 3})
    alone.add(dense(DenseReason.SCHEDULE, 1, position()))
    alone.add_evaluation(0, lambda: 4.0)
    for report in (untimed, alone):
        assert report.speed_up() is None and "about" not in report.summary()
    assert untimed.work() is None and alone.work() == 0.25


def test_a_step_that_another_cache_answered_is_no_dense_one() -> None:
    report = speed_run(1.0)
    report.add_evaluation(5, lambda: 0.001)
    assert report.median_step_seconds() == (pytest.approx(6.0), pytest.approx(10.0))
    assert report.speed_up() == pytest.approx(210 / 34, rel=1e-3)


def test_without_attention_calls_every_computed_evaluation_is_dense_and_the_first_does_not_decide() -> None:
    report = RunReport(outcomes={"computed": 3, "forecast": 3})
    for step, seconds in enumerate((20.0, 2.0, 2.0)):
        report.add_evaluation(step, lambda seconds=seconds: seconds)  # type: ignore[misc]
    assert report.speed_up() == pytest.approx((20 + 5 * 2) / 24)


def test_a_run_that_skips_steps_and_is_dense_by_plan_in_the_others_says_so_and_nothing_of_sparse_calls() -> None:
    report = RunReport(outcomes={"computed": 3, "forecast": 3})
    for step in range(3):
        report.add(dense(DenseReason.SCHEDULE, 1, position(step)))
        report.add(dense(DenseReason.CROSS_ATTENTION, 1, None))
    assert "attention dense, as planned" in report.summary() and "sparse" not in report.summary()
    report.add(dense(DenseReason.MASK, 1, position(3)))
    assert "0 of 4 self-attention calls sparse" in report.summary()
    computed = RunReport(outcomes={"computed": 3})
    computed.add(dense(DenseReason.SCHEDULE, 1, position(0)))
    assert "0 of 1 self-attention calls sparse" in computed.summary(), "without skipped steps it is a plan of nothing"


def test_a_loss_is_called_one() -> None:
    report = RunReport()
    report.add(dense(DenseReason.SCHEDULE, 1, position(0), seconds=1.0))
    report.add(sparse(0.9, 1, position(1), seconds=1.5))
    assert report.summary().endswith("; sparse call 1.5x slower than dense call")


def test_the_density_map_is_steps_by_layers() -> None:
    report = filled()
    report.add(sparse(0.35, 100, position(1, 0)))
    report.add(sparse(0.5, 100, position(3, 1)))
    cells = report.density_map()
    assert cells[0] == [1.0, 1.0]
    assert cells[1] == [pytest.approx(0.3), 0.75]
    assert cells[2:] == [[None, None], [None, 0.5]]


def test_an_empty_report_says_so() -> None:
    report = RunReport()
    assert report.executed_density() is None
    assert report.sparse_density() is None
    assert report.density_map() == []
    assert report.mean_seconds() == (None, None)
    assert json.loads(json.dumps(report.to_dict()))["calls"] == 0
    assert "0 of 0" in report.summary()


def test_the_report_is_strict_json() -> None:
    report = filled()
    report.tails[0] = ("linear1", "none")
    report.tail_errors[0] = {"none": float("nan"), "mean": float("inf"), "linear1": 0.1}
    report.note("a message")
    written = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert written["tail_errors"] == {"0": {"none": None, "mean": None, "linear1": 0.1}}
    assert written["tails"] == {"0": ["linear1", "none"]}
    assert written["calls_sparse"] == 2
    assert written["executed_density"] == pytest.approx(0.75)
    assert written["density_map"] == [[1.0, 1.0], [0.25, 0.75]]
    assert written["notes"] == ["a message"]


def test_the_summary_leaves_out_what_is_nobodys_concern() -> None:
    line = filled().summary()
    assert "2 of 4 self-attention calls sparse at density 0.62" in line
    assert "executed density 0.75" in line
    assert "1 schedule" in line
    assert "not self-attention" not in line


def test_the_executed_density_is_told_only_where_it_is_another() -> None:
    report = RunReport()
    report.add(sparse(0.25, 100, position(0)))
    report.add(sparse(0.35, 100, position(1)))
    assert report.summary() == "DraftAttention: 2 of 2 self-attention calls sparse at density 0.30"
    report.add(dense(DenseReason.SCHEDULE, 1, position(2)))
    assert "executed" not in report.summary(), "the same to two digits"
    report.add(dense(DenseReason.SCHEDULE, 10, position(3)))
    assert report.summary().split("; ")[1:3] == ["dense: 2 schedule", "executed density 0.34"]
    all_dense = RunReport()
    all_dense.add(dense(DenseReason.SCHEDULE, 100, position(0)))
    assert all_dense.summary().endswith("; executed density 1.00")


def test_a_note_is_kept_once() -> None:
    report = RunReport()
    assert report.note("x")
    assert not report.note("x")
    assert report.notes == ["x"]


def test_threads_lose_no_call() -> None:
    report = RunReport()
    work = [threading.Thread(target=lambda: [report.add(sparse(0.5, 1)) for _ in range(200)]) for _ in range(8)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert report.calls_sparse == 1600


def test_the_duration_stands_still_once_finished() -> None:
    report = RunReport()
    report.finish()
    assert report.seconds == report.seconds


def test_skipped_steps_are_told_with_their_error_and_an_estimate_of_the_gain() -> None:
    report = RunReport(skip=StepCacheSettings("forecast"), steps=10)
    for step in range(4):
        report.add_evaluation(step, lambda: 2.0)
        report.add_outcome("computed", 0)
    for _ in range(6):
        report.add_outcome("forecast", 1)
    report.decisions = tuple(
        Decision(i, "m", None, 0.5, 0.5, Outcome.COMPUTED, Reason.FIRST, None, error, 1, 0)
        for i, error in enumerate((None, 0.01, 0.03))
    )
    # Ten evaluations of 2 s each, four of them computed.
    assert report.skipped == 6 and report.work() == 0.4 and report.speed_up() == 2.5
    assert report.skip_error() == pytest.approx(0.02)
    assert report.summary() == (
        "DraftAttention: 10 evaluations: 4 computed, 6 forecast; forecast error 2.0%; "
        "about 2.5x, estimated from this run's dense evaluations"
    )


def decision(index: int, outcome: Outcome, error: float | None = None, window: str | None = None) -> Decision:
    computed = outcome is Outcome.COMPUTED
    reason, branches = (Reason.ABOVE, (2, 0)) if computed else (Reason.BELOW, (0, 2))
    return Decision(index, "m", window, 0.5, 0.5, outcome, reason, None if index == 0 else 0.01, error, *branches)


def test_where_every_step_was_decided_once_steps_are_counted_and_not_the_calls_they_take() -> None:
    report = RunReport(skip=StepCacheSettings("forecast"), steps=3)
    for step, outcome in enumerate(("computed", "computed", "forecast")):
        for _condition in range(2):
            report.add_outcome(outcome, step)
    two = (decision(0, Outcome.COMPUTED), decision(1, Outcome.COMPUTED, 0.00012))
    report.decisions = (*two, decision(2, Outcome.FORECAST))
    assert report.summary() == "DraftAttention: 3 steps: 2 computed, 1 forecast; forecast error 0.01%"
    # A sampler that asks twice a step: its evaluations are counted.
    report.steps = 2
    assert report.summary().startswith("DraftAttention: 6 evaluations: 4 computed, 2 forecast;")
    reused = RunReport(skip=StepCacheSettings("easycache", 0.0), steps=2, decisions=two, outcomes={"computed": 2})
    assert reused.summary() == "DraftAttention: 2 steps, all computed; error of the rule 0.01%"


def test_decisions_are_counted_by_reason_and_the_worst_window_speaks_for_an_evaluation() -> None:
    made = (
        decision(0, Outcome.COMPUTED),
        decision(1, Outcome.COMPUTED, 0.1, "left"),
        decision(1, Outcome.COMPUTED, 0.3, "right"),
        decision(2, Outcome.COMPUTED, math.nan),
        decision(3, Outcome.FORECAST),
    )
    assert skips.reasons(made) == {"threshold reached": 4}
    assert skips.reasons(made, Outcome.FORECAST) == {"below the threshold": 1}
    assert skips.measured_errors(made) == {1: 0.3}
    assert skips.mean_error(made) == pytest.approx(0.2)
    rows = RunReport(decisions=made).to_dict()["decisions"]
    assert [(row["evaluation"], row["window"], row["error"]) for row in rows] == [
        (0, 0, None),
        (1, 1, 0.1),
        (1, 2, 0.3),
        (2, 0, None),
        (3, 0, None),
    ]
    assert json.loads(json.dumps(rows)) == rows and rows[4]["outcome"] == "forecast"


def test_the_work_of_sparse_and_skipped_steps_together_is_their_product_at_attentions_share_of_the_time() -> None:
    report = RunReport()
    for step, density in ((0, None), (1, 0.25)):
        reason = DenseReason.SCHEDULE if density is None else None
        report.add(Call(Position(step, 0.0, 0, 1), density, reason, 100.0, lambda: 6.0))
        report.add_evaluation(step, lambda: 10.0)
        report.add_outcome("computed", 0)
    report.add_outcome("reused", 1)
    report.add_outcome("reused", 1)
    # Half of the evaluations; attention takes 60 % of a dense one and ran at 5/8 of its work on average.
    assert report.work() == pytest.approx(0.5 * (0.4 + 0.6 * 0.625))
