"""The pack's routes on a real server: its own data only, bounded, and 404 for what is not there."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

from tests.browser.canvas import Canvas


def answer(canvas: Canvas, path: str, body: bytes | None = None) -> tuple[int, object]:
    """Status and JSON of a request."""
    request = urllib.request.Request(canvas.server.url + path, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        return error.code, json.loads(text) if text.startswith("{") else text


def check(canvas: Canvas, node: str, **values: object) -> tuple[int, object]:
    return answer(canvas, "/draftattention/check", json.dumps({"node": node, "values": values}).encode())


def test_texts_are_checked(canvas: Canvas) -> None:
    status, problems = check(canvas, "ApplyDraftAttention", tile="4x4", dense_layers="0")
    assert status == 200 and isinstance(problems, dict) and list(problems) == ["tile"]


def test_a_node_of_another_pack_is_not_found(canvas: Canvas) -> None:
    assert check(canvas, "KSampler", steps="20")[0] == 404


def test_too_much_and_nonsense_are_refused(canvas: Canvas) -> None:
    assert check(canvas, "ApplyDraftAttention", tile="x" * 100_000)[0] == 413
    assert check(canvas, "ApplyDraftAttention", tile=3)[0] == 400
    assert answer(canvas, "/draftattention/check", b"{")[0] == 400


def test_workflows_that_never_ran_have_no_verdicts(canvas: Canvas) -> None:
    assert answer(canvas, "/draftattention/verdicts/never-ran")[0] == 404
    status, known = answer(canvas, "/draftattention/verdicts")
    assert status == 200 and isinstance(known, list) and "never-ran" not in known


def test_no_route_leads_out_of_what_the_pack_shows_to_browsers(canvas: Canvas) -> None:
    for path in (
        "/draftattention/verdicts/..%2f..%2fpyproject.toml",
        "/draftattention/../pyproject.toml",
        "/extensions/draftattention/../pyproject.toml",
        "/extensions/draftattention/%2e%2e/pyproject.toml",
    ):
        assert answer(canvas, path)[0] in (403, 404), path
