"""Routes for the pack's scripts. They give nothing but the pack's own data, and take only so much."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from ..inputs.checks import PROBLEMS
from ..words import plain
from .run_log import RUNS
from .verdicts import VERDICTS

PREFIX = "/draftattention"
MAX_BODY = 32_768
MAX_VALUES = 32


def add_routes(table: Any) -> None:
    """Enter the routes into the host's table, an aiohttp RouteTableDef, before its server starts."""
    from aiohttp import web

    async def check(request: Any) -> Any:
        body = bytearray()
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > MAX_BODY:
                break
        status, answer = answer_check(bytes(body))
        return web.json_response(answer, status=status)

    async def workflows(request: Any) -> Any:
        return web.json_response(VERDICTS.workflows())

    async def verdicts(request: Any) -> Any:
        found = VERDICTS.of(request.match_info["workflow"])
        if found is None:
            return web.json_response({"error": "no such workflow"}, status=404)
        return web.json_response(found)

    async def runs(request: Any) -> Any:
        return web.json_response(RUNS.runs())

    async def rows(request: Any) -> Any:
        found = RUNS.rows(int(request.match_info["number"]))
        if found is None:
            return web.json_response({"error": "no such run"}, status=404)
        return web.json_response(found)

    examining = asyncio.Lock()

    async def examine(request: Any) -> Any:
        if examining.locked():
            return web.json_response({"error": "the doctor is busy"}, status=409)
        async with examining:
            return web.json_response(await asyncio.to_thread(_diagnosis))

    table.get(f"{PREFIX}/runs")(runs)
    table.get(f"{PREFIX}/runs/{{number:[0-9]{{1,12}}}}")(rows)
    table.post(f"{PREFIX}/doctor")(examine)
    table.post(f"{PREFIX}/check")(check)
    table.get(f"{PREFIX}/verdicts")(workflows)
    table.get(f"{PREFIX}/verdicts/{{workflow}}")(verdicts)


def _diagnosis() -> dict[str, Any]:
    from ...draftattn_core.doctor.diagnose import diagnose

    text = diagnose().text()
    return {"text": str(text), "words": plain(text)}


def answer_check(body: bytes) -> tuple[int, dict[str, Any]]:
    """What is wrong with the widgets of a node, by input.

    Args:
        body: JSON such as {"node": "ApplyDraftAttention", "values": {"tile": "4x4"}}; values that another node brings
            are left out.

    Returns:
        Status and answer: 200 with the problems as `words.plain` has them, 404 for a node that has none of our texts,
        413 and 400 for a body that is too long or not understood.
    """
    if len(body) > MAX_BODY:
        return 413, {"error": f"more than {MAX_BODY} bytes"}
    try:
        asked: Any = json.loads(body)
        node, values = asked["node"], asked["values"]
        known = all(isinstance(text, str) for pair in values.items() for text in pair) and len(values) <= MAX_VALUES
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        known = False
    if not known:
        return 400, {"error": "expected a node and its values as texts"}
    if not isinstance(node, str) or node not in PROBLEMS:
        return 404, {"error": "no such node"}
    try:
        return 200, {name: plain(problem) for name, problem in PROBLEMS[node](**values).items()}
    except TypeError:
        return 400, {"error": "no such input"}
