"""What browsers are told of every evaluation: one small message, whatever the model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "web" / "map_drawing.js"


@pytest.fixture
def live_map(part):
    return part("nodes.browser.live_map")


def test_each_evaluation_is_one_small_message_and_the_end_is_another(part, live_map) -> None:
    events = part("draftattn_core.run.events")
    channel, sent = events.Events(), []
    live_map.announce_map(channel, "7", job=lambda: ("w", "p"), send=lambda *message: sent.append(message))
    channel.emit(events.RunStarted(3, 0.0, True))
    layers = ("schedule", 0.254, None, *["stood aside after errors"] * 5000)
    channel.emit(events.EvaluationDone(0, 3, 0.0, 1.0, "computed", 1.5, layers))
    channel.emit(events.EvaluationDone(1, 3, 0.5, 0.5, "forecast", 1.6))
    channel.emit(events.RunDone("text", None, 3, 2.0, 1, 2, {}, {}))
    assert [name for name, _ in sent] == [live_map.EVENT] * 3
    first, second, last = (told for _, told in sent)
    assert (first["node"], first["workflow"], first["step"], first["steps"]) == ("7", "w", 0, 3)
    assert first["layers"][:4] == [-2, 25, -1, -15] and first["seconds"] == 1.5
    assert len(first["layers"]) == live_map.MAX_LAYERS and first["all_layers"] == 5003
    assert (second["outcome"], second["layers"], second["run"]) == ("forecast", [], first["run"])
    assert last["outcome"] == "done" and last["seconds"] == 2.0
    assert all(len(json.dumps(told, allow_nan=False)) < 1500 for _, told in sent)


def test_the_browser_knows_the_reasons_in_the_same_order(live_map) -> None:
    listed = SCRIPT.read_text(encoding="utf-8").split("const REASONS = [")[1].split("\n]")[0]
    assert tuple(re.findall(r'\["([^"]+)", "#', listed)) == live_map.REASONS
