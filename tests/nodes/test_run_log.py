"""The list of the server's runs: what is kept of each, and how much at most."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest


@pytest.fixture
def room(part) -> SimpleNamespace:
    """The log with a handle that speaks into it."""
    log, runs, events = part("nodes.browser.run_log"), part("nodes.host.runs"), part("draftattn_core.run.events")
    kept, handle, sent = log.RunLog(), runs.ReportHandle(), []
    choices = part("nodes.inputs.presets").Choices(preset="fast", dense_layers=(0, -1))
    jobs = {"job": lambda: ("w", "p"), "send": lambda *message: sent.append(message), "title": lambda: "My node"}
    log.announce_runs(handle, "7", choices, **jobs, runs=kept)
    return SimpleNamespace(log=log, kept=kept, handle=handle, sent=sent, events=events, part=part)


def run(room, rows, dense=(), text="text", cancelled=None) -> None:
    emit, events = room.handle.events.emit, room.events
    emit(events.RunStarted(len(rows), 0.0, False))
    for step, layers in enumerate(rows):
        outcome = "forecast" if layers is None else "computed"
        emit(events.EvaluationDone(step, len(rows), 0.0, 1.0, outcome, 1.0 * step, layers or ()))
    assert not emit(events.RunDone(text, cancelled, len(rows), 2.5, 1, 2, dict(dense), {}))


def test_a_run_is_kept_with_its_settings_and_what_its_layers_did(room) -> None:
    run(room, [("schedule", 0.25), None])
    (told,) = room.kept.runs()
    assert (told["node"], told["workflow"], told["title"]) == ("7", "w", "My node")
    assert (told["steps"], told["seconds"]) == (2, 2.5)
    assert told["settings"] == {"preset": "fast", "dense_layers": "0, -1"}
    assert room.kept.rows(told["number"]) == (
        {"step": 0, "skipped": False, "cells": [-2, 25]},
        {"step": 1, "skipped": True, "cells": []},
    )
    assert room.sent == [(room.log.EVENT, told)] and "rows" not in told
    assert room.kept.rows(told["number"] + 1) is None


def test_an_evaluation_that_was_computed_counts_for_its_step(room) -> None:
    emit, events = room.handle.events.emit, room.events
    emit(events.RunStarted(1, 0.0, False))
    for outcome, layers in (("forecast", ()), ("computed", (0.5,)), ("reused", ())):
        emit(events.EvaluationDone(0, 1, 0.0, 1.0, outcome, 1.0, layers))
    emit(events.RunDone("", None, 1, 1.0, 1, 1, {}, {}))
    (told,) = room.kept.runs()
    assert room.kept.rows(told["number"])[0]["cells"] == [50]


def test_a_new_run_begins_with_empty_rows(room) -> None:
    run(room, [(0.5,)] * 5)
    run(room, [(0.5,)])
    newest = room.kept.runs()[0]
    assert len(room.kept.rows(newest["number"])) == 1


def test_the_list_is_bounded_and_begins_with_the_newest(room) -> None:
    for _ in range(room.log.MAX_RUNS + 3):
        run(room, [(0.5,)])
    numbers = [told["number"] for told in room.kept.runs()]
    assert numbers == list(range(room.log.MAX_RUNS + 3, 3, -1))


def test_a_run_is_bounded_whatever_the_model_and_its_texts_are(room) -> None:
    run(room, [("error",) * 1000] * 500, text="x" * 10_000, cancelled="cancelled after step 3 of 20")
    (told,) = room.kept.runs()
    rows = room.kept.rows(told["number"])
    assert len(rows) == room.log.MAX_STEPS and len(rows[0]["cells"]) == room.log.MAX_LAYERS
    assert len(json.dumps(told, allow_nan=False)) < 6000 and told["cancelled"].startswith("cancelled")


def test_the_density_is_that_of_the_sparse_calls(room, part) -> None:
    core = part("draftattn_core.run.report")
    room.handle.report = report = core.RunReport()
    run(room, [("schedule",)])
    for step, density in enumerate((None, 0.25, 0.35)):
        reason = core.DenseReason.SCHEDULE if density is None else None
        report.add(core.Call(core.Position(step, 0.0, 0, 1), density, reason, 100.0, lambda: 1.0))
    report.finish()
    run(room, [("schedule", 0.25, 0.35)])
    newest, first = room.kept.runs()
    assert newest["density"] == pytest.approx(0.3) and first["density"] is None


def test_the_most_frequent_reason_nobody_asked_for_is_named(room) -> None:
    run(room, [(0.5,)], dense={"schedule": 90, "mask": 3, "error": 1, "not self-attention": 50})
    run(room, [(0.5,)], dense={"schedule": 90})
    assert [told["dense"] for told in room.kept.runs()] == ["", "mask"]


def test_the_error_is_that_of_the_tails_in_use(room) -> None:
    report = replace(
        room.handle.report,
        tails={0: ("mean", "linear1"), 1: ("mean", "mean"), 2: ("none",)},
        tail_errors={0: {"mean": 0.2, "linear1": 0.1}, 1: {"mean": 0.4, "linear1": 0.3}},
    )
    assert room.log.tail_error(report) == pytest.approx((0.2 + 0.1 + 0.4 + 0.4) / 4)
    room.handle.report = replace(report, tail_errors={0: {"mean": float("inf")}})
    run(room, [(0.5,)])
    assert room.kept.runs()[0]["error"] is None
    assert room.log.tail_error(replace(report, tail_errors={})) is None
