"""The report of a run that skips steps, in words: with attention served, and without."""

from __future__ import annotations

from dataclasses import replace

import pytest

EVALUATION = "draftattn_core.run.evaluation"


@pytest.fixture
def skipping(part):
    """A report of three steps: two computed, one with a measured error, and one skipped; `fill` may change it."""

    def make(rule: str = "forecast", fill=lambda report: None):
        core, cache = part("draftattn_core.run.report"), part("draftattn_core.run.step_cache")
        outcome = part("draftattn_core.run.evaluation").Outcome
        told = ((outcome.COMPUTED, cache.Reason.FIRST, None), (outcome.COMPUTED, cache.Reason.LAST, 0.0123))
        report = core.RunReport(skip=cache.StepCacheSettings(rule), steps=3)
        made = [(*row, index) for index, row in enumerate(told)]
        skipped = outcome.REUSED if rule == "easycache" else outcome.FORECAST
        made.insert(1, (skipped, cache.Reason.BELOW, None, 5))
        report.decisions = tuple(
            cache.Decision(index, "m", None, 0.5, 0.5, kind, reason, 0.04, error, 1, 0)
            for kind, reason, error, index in made
        )
        for step, (kind, *_) in enumerate(made):
            report.add_outcome(kind.value, step)
            if kind is outcome.COMPUTED:
                report.add_evaluation(step, lambda: 2.0)
        fill(report)
        report.finish()
        return part("nodes.display.report_text").report_text(report)

    return make


def test_without_attention_it_tells_the_evaluations_their_reasons_the_work_and_the_errors(skipping) -> None:
    lines = skipping().splitlines()
    assert lines[0] == (
        "DraftAttention: 3 steps: 2 computed, 1 forecast; forecast error 1.2%; "
        "about 1.5x, estimated from this run's dense evaluations"
    )
    assert "Evaluations: 2 computed, 1 forecast." in lines
    assert "Computed because: 1 first evaluations, 1 last evaluation." in lines
    assert any(line.startswith("Work of the run: 67% of a run that computes everything densely") for line in lines)
    assert any(line.startswith("Forecast error") and line.endswith("by evaluation: 2: 1.2%.") for line in lines)
    assert not [line for line in lines if "attention call" in line or "self-attention" in line or "densit" in line]


def test_easycache_speaks_of_reuse_and_of_the_error_of_the_rule(skipping) -> None:
    text = skipping("easycache")
    assert "2 computed, 1 reused; error of the rule 1.2%" in text and "Error of the rule" in text
    assert "orecast" not in text


def test_a_plan_speaks_of_the_error_across_a_gap_and_of_what_was_corrected(skipping, part) -> None:
    told: list = []

    def planned(corrected: bool):
        def fill(report) -> None:
            report.decisions = tuple(
                replace(
                    made,
                    reason=type(made.reason).PLANNED,
                    corrected=corrected and made.error is not None,
                    uncorrected=None if corrected or made.error is None else part(EVALUATION).Uncorrected.GUIDER,
                )
                for made in report.decisions
            )
            told.append(report)

        return skipping("spread", fill)

    text = planned(corrected=True)
    assert "2 computed, 1 forecast; forecast error across a whole gap 1.2%; corrections: 1" in text
    assert "Computed because: 2 planned." in text and "make good what the forecasts before them missed: 1." in text
    assert "inside the gap it is smaller. By evaluation: 2: 1.2%." in text
    assert part("nodes.host.run_words").run_words(told[0]) == told[0].summary()
    text = planned(corrected=False)
    assert "corrections" not in text and "gap 1.2%; not corrected: 1 guider of another node; about" in text
    assert "missed as it is, and why: 1 guider of another node." in text
    assert part("nodes.host.run_words").run_words(told[1]) == told[1].summary()


def test_attention_that_is_dense_by_plan_is_told_alike_in_log_and_browser(skipping, part) -> None:
    told = []

    def fill(report) -> None:
        kinds = part("draftattn_core.run.report")
        at = kinds.Position(0, 0.0, 0, 2)
        report.calls[:] = [kinds.Call(at, None, kinds.DenseReason.SCHEDULE, 1, lambda: 1.0)]
        told.append(report)

    skipping("spread", fill)
    words = part("nodes.host.run_words").run_words(told[0])
    assert words == told[0].summary() and "attention dense, as planned" in words


def test_notes_are_told_and_what_was_not_measured_is_said(skipping) -> None:
    def unmeasured(report) -> None:
        report.decisions = report.decisions[:2]
        report.note("DraftAttention skips no steps: because")

    text = skipping(fill=unmeasured)
    assert "its error is not known" in text and "  DraftAttention skips no steps: because" in text


def test_with_attention_both_are_told(part, skipping) -> None:
    core = part("draftattn_core.run.report")

    def add(report) -> None:
        report.add(core.Call(core.Position(0, 0.0, 0, 1), None, core.DenseReason.SCHEDULE, 100.0, lambda: 1.0))
        report.add(core.Call(core.Position(2, 1.0, 0, 1), 0.2, None, 100.0, lambda: 1.0))

    text = skipping(fill=add)
    assert "3 steps: 2 computed, 1 forecast; forecast error 1.2%; 1 of 2 self-attention calls sparse" in text
    assert "Evaluations: 2 computed, 1 forecast." in text and "Sparse calls computed 20.0%" in text
    # Attention takes half of an evaluation and ran at 0.6 of its work; two of three evaluations were computed.
    assert "Work of the run: 53%" in text


def test_where_no_dense_evaluation_tells_what_attention_takes_the_work_is_said_to_be_unknown(part, skipping) -> None:
    core = part("draftattn_core.run.report")

    def add(report) -> None:
        for step in (0, 2):
            report.add(core.Call(core.Position(step, 0.0, 0, 1), 0.2, None, 100.0, lambda: 1.0))

    lines = skipping(fill=add).splitlines()
    assert [line for line in lines if line.startswith("Work of the run")] == [
        "Work of the run: not known, because no dense evaluation was measured."
    ]
    assert "about" not in lines[0]
