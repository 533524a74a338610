"""The host's server: what runs on it now, and what can be sent to its browsers."""

from __future__ import annotations

from typing import Any

MAX_ID, MAX_TITLE = 100, 80


def instance() -> Any | None:
    """The running server; None in a script that uses the nodes without one."""
    from server import PromptServer

    return getattr(PromptServer, "instance", None)


def running_job(server: Any) -> tuple[str, str]:
    """Ids of the workflow and of the job that run now; each empty where it is not known."""
    running, _ = server.prompt_queue.get_current_queue_volatile()
    if len(running) != 1:
        return "", ""
    _, prompt, _, extra, *_ = running[0]
    workflow = ((extra.get("extra_pnginfo") or {}).get("workflow") or {}).get("id")
    return _bounded(workflow), _bounded(prompt)


def running_title(server: Any, node: str) -> str:
    """What the user calls a node of the job that runs now, cut at `MAX_TITLE` characters; empty where it is not known.

    Front ends send it beside the inputs of each node; a job made by a script may have none.
    """
    running, _ = server.prompt_queue.get_current_queue_volatile()
    if len(running) != 1:
        return ""
    nodes = running[0][2]
    about = (nodes.get(node) or {}).get("_meta") if isinstance(nodes, dict) else None
    title = about.get("title") if isinstance(about, dict) else None
    return title.strip()[:MAX_TITLE] if isinstance(title, str) else ""


def _bounded(name: Any) -> str:
    """An id as it is, or empty: it comes from whoever queued the job. Ids of nothing but zeros are everyone's."""
    known = isinstance(name, str) and len(name) <= MAX_ID and bool(name.strip("0-"))
    return name if known else ""
