"""How the last runs went, for browsers that come back: kept while the server runs, bounded in number and size."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ...draftattn_core.run.events import Events, RunDone
from ..words import plain

EVENT = "draftattention.verdict"
MAX_WORKFLOWS, MAX_NODES, MAX_TEXT = 64, 32, 4000
CUT = " [...]"


@dataclass(frozen=True)
class Verdict:
    """How a run of one node's model went.

    Attributes:
        text: in words, at most `MAX_TEXT` characters; words: the same as `words.plain` has it, None if it was cut.
        cancelled: whether it ended early.
        prompt: the host's id of the job.
        at: when it ended, in seconds since 1970.
    """

    text: str
    cancelled: bool
    prompt: str
    at: float
    words: Any = None


def bounded(text: str) -> tuple[str, Any]:
    """A text for the browser, at most `MAX_TEXT` characters, and as `plain` has it; None for that if it was cut."""
    if len(text) > MAX_TEXT:
        return text[: MAX_TEXT - len(CUT)] + CUT, None
    return str(text), plain(text)


class Verdicts:
    """The last verdict of every node of the workflows that ran last. Thread-safe."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, OrderedDict[str, Verdict]] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, workflow: str, node: str, verdict: Verdict) -> None:
        """Keep a verdict in place of the node's last one; the oldest of too many workflows or nodes goes."""
        with self._lock:
            nodes = self._kept.setdefault(workflow, OrderedDict())
            self._kept.move_to_end(workflow)
            nodes[node] = verdict
            nodes.move_to_end(node)
            if len(nodes) > MAX_NODES:
                nodes.popitem(last=False)
            if len(self._kept) > MAX_WORKFLOWS:
                self._kept.popitem(last=False)

    def workflows(self) -> list[str]:
        """Ids of the workflows that have any."""
        with self._lock:
            return list(self._kept)

    def of(self, workflow: str) -> dict[str, dict[str, Any]] | None:
        """A workflow's verdicts by node, as plain values; None if it has none."""
        with self._lock:
            nodes = self._kept.get(workflow)
            return None if nodes is None else {node: asdict(verdict) for node, verdict in nodes.items()}


# One server has one set of browsers, whatever models its runs use.
VERDICTS = Verdicts()


def announce_verdicts(
    events: Events,
    node: str,
    *,
    job: Callable[[], tuple[str, str]],
    send: Callable[[str, dict[str, Any]], None],
    verdicts: Verdicts = VERDICTS,
) -> None:
    """Keep and send the verdict of every run that speaks through `events`.

    Args:
        node: the host's id of the node.
        job: ids of the workflow and of the job that run now; empty where they are not known.
        send: sends an event to all browsers.
    """

    def told(event: RunDone) -> None:
        workflow, prompt = job()
        text, words = bounded(event.text)
        verdict = Verdict(text, event.cancelled is not None, prompt, time.time(), words)
        if workflow:
            verdicts.keep(workflow, node, verdict)
        send(EVENT, {"node": node, "workflow": workflow, **asdict(verdict)})

    events.subscribe(RunDone, told)
