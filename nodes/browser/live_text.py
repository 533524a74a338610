"""The line under a node while it runs: the host's own, in English, and its words for the browser's language."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..words import plain
from .server import running_job

EVENT = "draftattention.live_text"
MAX_TEXT = 4000


def live_text(server: Any, node: str) -> Callable[[str], None]:
    """What puts a text under a node in all browsers.

    Args:
        server: the host's.
        node: the host's id of the node.
    """

    def tell(text: str) -> None:
        server.send_progress_text(str(text), node)
        # The host's message comes first: the browser then says the same in its user's language.
        if len(text) <= MAX_TEXT:
            server.send_sync(EVENT, {"node": node, "workflow": running_job(server)[0], "words": plain(text)})

    return tell
