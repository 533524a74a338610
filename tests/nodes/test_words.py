"""Texts for the browser: English as the core says it, and the keys and values that other languages are made from."""

from __future__ import annotations

import copy
import json
import math
import re
from types import SimpleNamespace

import pytest


@pytest.fixture
def words(part):
    return part("nodes.words")


def said(words, told) -> str:
    """What the browser makes of a text in English."""
    if isinstance(told, dict) and "parts" in told:
        return words.ENGLISH[told["by"]].join(said(words, one) for one in told["parts"])
    if isinstance(told, dict):
        values = {name: said(words, value) for name, value in told["values"].items()}
        return re.sub(r"\{(\w+)\}", lambda place: values[place[1]], words.ENGLISH[told["key"]])
    return str(told)


def test_a_text_is_english_and_remembers_what_it_was_made_from(words) -> None:
    made = words.Words("run_line", story=words.Joined([words.Words("one_run"), "x"], words.LIST))
    assert made == "DraftAttention: 1 run, x" and isinstance(made, str)
    told = words.plain(made)
    assert told == {
        "key": "run_line",
        "values": {"story": {"parts": [{"key": "one_run", "values": {}}, "x"], "by": "join_list"}},
    }
    assert said(words, json.loads(json.dumps(told))) == made


def test_an_unknown_text_or_a_missing_value_is_an_error(words) -> None:
    with pytest.raises(KeyError):
        words.Words("no such text")
    with pytest.raises(KeyError):
        words.Words("run_line")


def test_braces_in_a_value_stay_as_they_are(words) -> None:
    assert words.Words("report_item", text="{count} {text}") == "  {count} {text}"


def test_a_copy_is_plain_text(words) -> None:
    made = words.Joined([words.Words("one_run"), "b"], words.LINES)
    kept = copy.deepcopy({"text": (made, words.Words("one_run"))})
    assert kept == {"text": ("1 run\nb", "1 run")} and all(type(one) is str for one in kept["text"])
    shown = words.told(made)
    assert type(shown["text"][0]) is str and shown["draftattention_words"][0]["by"] == "join_lines"


def reports(part):
    """Reports of every shape that the summary has words for."""
    core, log = part("draftattn_core.run.report"), part("draftattn_core.run.step_cache.log")
    settings, outcome = part("draftattn_core.run.step_cache.settings"), part("draftattn_core.run.evaluation").Outcome

    def made(calls=(), cancelled=None, outcomes=None, decided=(), rule="off", steps=None, seconds=()):
        report = core.RunReport()
        for step, (density, reason, took) in enumerate(calls):
            why = None if reason is None else core.DenseReason(reason)
            position = core.Position(step, 0.0, 0, 1) if reason != "not self-attention" else None
            report.add(core.Call(position, density, why, 100.0, lambda took=took: took))
        for step, took in enumerate(seconds):
            report.add_evaluation(step, lambda took=took: took)
        report.cancelled, report.steps = cancelled, steps
        report.skip = settings.StepCacheSettings(rule=rule)
        report.outcomes.update(outcomes or {})
        report.decisions = [
            log.Decision(index, 0, 0, 0.5, 0.5, kind, log.Reason.FIRST, None, error, 1, 0)
            for index, (kind, error) in enumerate(decided)
        ]
        report.finish()
        return report

    sparse, dense = (0.25, None, 0.5), (None, "schedule", 1.0)
    computed, forecast = (outcome.COMPUTED, 0.0123), (outcome.FORECAST, None)
    yield made([sparse, sparse, dense], seconds=(1.0, 1.0, 2.0))
    yield made([sparse, dense], "cancelled after step 2 of 20")
    yield made([sparse], "cancelled in step 1")
    yield made([dense, (None, "mask", 1.0), (None, "not self-attention", 1.0)])
    yield made([(0.25, None, 2.0), dense])
    yield made([(0.25, None, 0.0)])
    yield made(outcomes={"computed": 4})
    yield made(
        outcomes={"computed": 2, "forecast": 2},
        decided=[computed, forecast, computed, forecast],
        rule="forecast",
        steps=4,
    )
    yield made([sparse], outcomes={"computed": 3}, decided=[computed] * 3, rule="easycache", steps=8)
    yield made(
        [sparse, dense], outcomes={"computed": 2, "reused": 1}, decided=[computed, computed, forecast], rule="easycache"
    )


def test_the_story_of_a_run_is_the_core_s_word_for_word(part, words) -> None:
    told = part("nodes.host.run_words").run_words
    lines = [(report.summary(), told(report)) for report in reports(part)]
    assert len({line for line, _ in lines}) > 8, "the reports differ"
    for line, made in lines:
        assert made == line and said(words, words.plain(made)) == line


def test_the_report_says_in_english_what_its_keys_say(part, words) -> None:
    text = part("nodes.display.report_text").report_text
    for report in reports(part):
        report.tails[0] = ("linear1", "mean")
        report.tail_gains[0] = (0.0, math.log(2.0))
        report.tail_errors[0] = {"mean": 0.3, "linear1": 0.1}
        report.note("a note with {braces}")
        made = text(report)
        assert said(words, words.plain(made)) == made


def test_the_doctor_s_findings_are_the_core_s_word_for_word(part, words) -> None:
    diagnose = part("draftattn_core.doctor.diagnose")
    machine = diagnose.inspect_machine()
    checks = (
        diagnose.BackendCheck("torch", "cpu", "float32", 1e-6, 1e-4, None, 0.1),
        diagnose.BackendCheck("flex", "cpu", "float32", 1.0, 1e-4, None, 0.1),
        diagnose.BackendCheck("triton", "cpu", "float32", None, 1e-4, "needs a GPU", 0.1),
    )
    lesser = (diagnose.BackendCheck("torch", "cpu", "float32", 1e-6, 1e-4, None, 0.1, "linear tails"),)
    assert "without linear tails" in diagnose.Diagnosis(machine, lesser, ()).text()
    for some, advice in ((checks, ("Do this.",)), (checks[1:], ()), (lesser, ())):
        found = diagnose.Diagnosis(machine, some, advice)
        made = part("nodes.display.doctor_text").doctor_text(found)
        assert made == found.text() and said(words, words.plain(made)) == made


def test_a_cancellation_that_is_not_understood_stays_as_it_is(part) -> None:
    assert part("nodes.host.run_words").cancelled_words("stopped somewhere") == "stopped somewhere"
    told = part("nodes.host.run_words").cancelled_words("cancelled after step 3 of 20")
    assert told.key == "cancelled_after_of" and told.values == {"step": 3, "steps": 20}


def test_the_problems_of_widgets_have_keys(part, words) -> None:
    problems = part("nodes.inputs.checks").PROBLEMS
    wrong = {
        "ApplyDraftAttention": {"tile": "4x4", "blocks": "1", "dense_layers": "x"},
        "SparsityScheduler": {"curve": "custom points", "points": "a", "layer_bands": "b", "dense_layers": "5-2"},
        "DraftAttentionReport": {"filename_prefix": "../x"},
        "DraftAttentionCalibrate": {"name": "a/b", "expert": "c/d"},
    }
    for node, values in wrong.items():
        found = problems[node](**values)
        assert set(found) == set(values) - {"curve"}, node
        for problem in found.values():
            assert isinstance(problem, words.Words) and said(words, words.plain(problem)) == problem


def test_the_live_text_goes_out_in_english_and_then_in_words(part, words) -> None:
    sent = []
    queue = SimpleNamespace(get_current_queue_volatile=lambda: ([], []))
    server = SimpleNamespace(
        prompt_queue=queue,
        send_progress_text=lambda text, node: sent.append((type(text), text, node)),
        send_sync=lambda event, told: sent.append((event, told)),
    )
    module = part("nodes.browser.live_text")
    tell = module.live_text(server, "7")
    tell(words.Words("live_step", step=2))
    told = {"node": "7", "workflow": "", "words": {"key": "live_step", "values": {"step": 2}}}
    assert sent == [(str, "step 2", "7"), (module.EVENT, told)]
    tell("x" * (module.MAX_TEXT + 1))
    assert len(sent) == 3, "a text without end is the host's alone"
