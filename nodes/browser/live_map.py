"""What every evaluation of a run did, layer by layer, for the map that the browser draws while sampling."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ...draftattn_core.run.events import EvaluationDone, Events, RunDone, RunStarted
from ...draftattn_core.run.report import DenseReason

EVENT = "draftattention.live_map"
MAX_LAYERS = 128
NOT_SEEN = -1
# Cells are small numbers: percent of the block pairs where a layer was sparse, else `NOT_SEEN`, or -2, -3, ... for the
# reasons in this order. `web/map_drawing.js` lists the same.
REASONS = tuple(str(reason) for reason in DenseReason)


def cell(value: float | str | None) -> int:
    """A layer's density or reason as it is sent."""
    if value is None:
        return NOT_SEEN
    if isinstance(value, str):
        return -2 - REASONS.index(value)
    return min(100, max(0, round(100 * value)))


def announce_map(
    events: Events,
    node: str,
    *,
    job: Callable[[], tuple[str, str]],
    send: Callable[[str, dict[str, Any]], None],
) -> None:
    """Send one message per evaluation of every run that speaks through `events`, and one at the end of each run.

    Args:
        node: the host's id of the node.
        job: ids of the workflow and of the job that run now; empty where they are not known.
        send: sends an event to all browsers.
    """
    run: dict[str, Any] = {}

    def began(event: RunStarted) -> None:
        run.update(node=node, workflow=job()[0], run=time.time(), steps=event.steps)

    def evaluated(event: EvaluationDone) -> None:
        if not run:
            return
        told = {"step": event.step, "outcome": event.outcome, "seconds": round(event.seconds, 3)}
        layers = [cell(value) for value in event.layers[:MAX_LAYERS]]
        send(EVENT, {**run, **told, "layers": layers, "all_layers": len(event.layers)})

    def ended(event: RunDone) -> None:
        if run:
            send(EVENT, {**run, "outcome": "done", "seconds": round(event.seconds, 3)})

    events.subscribe(RunStarted, began)
    events.subscribe(EvaluationDone, evaluated)
    events.subscribe(RunDone, ended)
