"""The report in words names every number the run counted."""

from __future__ import annotations

import math

import pytest


@pytest.fixture
def told(part):
    """Text of a report filled by a function that gets `add(step, density, reason, seconds)` and the report."""
    core = part("draftattn_core.run.report")
    text = part("nodes.display.report_text")

    def tell(fill) -> str:
        report = core.RunReport()

        def add(step, density=None, reason=None, seconds=0.0):
            why = None if reason is None else core.DenseReason(reason)
            report.add(core.Call(core.Position(step, 0.0, 0, 1), density, why, 100.0, lambda: seconds))

        fill(add, report)
        report.finish()
        return text.report_text(report)

    return tell


def test_before_a_run_it_says_what_to_connect(told) -> None:
    assert "Connect `after`" in told(lambda add, report: None)


def test_a_mixed_run(told) -> None:
    def run(add, report):
        add(0, reason="schedule", seconds=1.0)
        add(1, density=0.2, seconds=0.25)
        add(2, density=0.2, seconds=0.25)
        add(3, reason="too few tokens", seconds=1.0)
        for step, seconds in enumerate((2.0, 1.25, 1.25)):
            report.add_evaluation(step, lambda seconds=seconds: seconds)
        report.tails[0] = ("linear1", "linear1", "mean")
        report.tail_gains[0] = (0.0, math.log(3.25), 0.5)
        report.tail_errors[0] = {"mean": 0.3, "linear1": 0.1}
        report.tail_errors[1] = {"mean": 0.2, "linear1": 0.1}
        report.note("watch out")

    text = told(run)
    assert "computed 20.0% of their token pairs" in text
    assert "Executed density of the whole run, dense calls and text included: 60.0%" in text
    assert "1 schedule\n" in text
    assert "1 too few tokens: the video is too small" in text
    assert "A sparse call took 250.0 ms, a dense one 1000.0 ms (4.00x)" in text
    assert "took 1.25 s for a sparse step and 2.00 s for a dense step of its own (1.60x)" in text
    assert "1.5 s were saved, 38% of the attention's time" in text
    assert "at most 40% of the attention's time" in text
    assert "linear1 2, mean 1" in text
    assert "mean over layers: linear1 0.100, mean 0.250" in text
    assert "  layer 0: linear1 (2), mean (1), skipped blocks weighed x1 to x3.2; linear1 0.100, mean 0.300\n" in text
    assert "  layer 1: not chosen; linear1 0.100, mean 0.200\n" in text
    assert "watch out" in text


def test_a_slower_sparse_call_is_called_a_loss(told) -> None:
    def run(add, report):
        add(0, reason="schedule", seconds=1.0)
        add(1, density=0.9, seconds=1.5)

    assert "0.5 s were lost" in told(run)


def test_without_a_dense_call_no_gain_is_claimed(told) -> None:
    text = told(lambda add, report: add(0, density=0.2, seconds=0.1))
    assert "the gain is not measured" in text and "saved" not in text


def test_every_reason_has_a_remedy(part) -> None:
    core = part("draftattn_core.run.report")
    remedies = part("nodes.host.runs").REMEDIES
    assert {str(reason) for reason in core.DenseReason} <= set(remedies)


def test_the_predicted_saving_counts_pairs_and_the_work_of_the_tails(part) -> None:
    core, text = part("draftattn_core.run.report"), part("nodes.display.report_text")
    report = core.RunReport()
    assert text.predicted_saving(report) is None
    for step, density, tail_work in ((0, None, 0.0), (1, 0.2, 0.05), (2, 0.2, 0.05), (3, 0.2, 0.05)):
        reason = None if density else core.DenseReason.SCHEDULE
        report.add(core.Call(core.Position(step, 0.0, 0, 1), density, reason, 100.0, lambda: 1.0, tail_work))
    assert text.predicted_saving(report) == pytest.approx(1 - (1 + 3 * 0.25) / 4)


def test_without_a_tail_it_says_where_the_error_is_measured(told) -> None:
    assert "it is where skipped blocks have a tail" in told(lambda add, report: add(0, density=0.2, seconds=0.1))


def test_cross_attention_is_not_told_among_dense_calls(part, told) -> None:
    core = part("draftattn_core.run.report")

    def run(add, report):
        add(0, reason="schedule", seconds=1.0)
        report.add(core.Call(None, None, core.DenseReason.CROSS_ATTENTION, 0.0, lambda: 0.0))

    text = told(run)
    assert "  1 schedule\n" in text and "not self-attention" not in text


def test_budgets_say_what_they_changed_promised_and_kept(part, told) -> None:
    spent = part("draftattn_core.run.spent_budgets").SpentBudgets

    def run(add, report):
        add(0, density=0.25)
        heads = {0: (0.1, 0.4), 1: (1.0, 1.0)}
        report.budgets += [
            spent(0.1, "this run", 0.25, heads, 0.03, 0.05, 0.06, 0.04, 0.055),
            spent(0.5, "this run", 0.25, heads, 0.05, 0.05, None),
        ]

    lines = [line.strip() for line in told(run).splitlines()]
    assert (
        "from 10% of the denoising, by this run: density 0.25 for all became 0.10 to 1.00, mean 0.62; "
        "promised 0.030 (all alike: 0.060), worst layer 0.050; measured 0.040, worst layer 0.055." in lines
    )
    assert any(line.endswith("promised 0.050 at most for every layer.") for line in lines)


def test_int8_scores_are_told_with_what_they_cost(told) -> None:
    def run(add, report):
        add(0, density=0.2)
        report.bits, report.bits_errors = {0: (8, 8), 1: (8, 16)}, {0: (0.1, 0.101), 1: (0.3, 0.303)}
        report.calls[0].codes = 0.5

    text = told(run)
    assert (
        "INT8 scores: 3 of 4 heads lose so little by them that they may have them; 50% of the sparse calls' heads"
        in text
    )
    assert "0.200 in 16 bits, 0.202 in 8" in text
    assert "INT8" not in told(lambda add, report: add(0, density=0.2))
