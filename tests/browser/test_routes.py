"""The pack's routes on a real server: its own data only, bounded, and 404 for what is not there."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from tests.browser.canvas import Canvas
from tools.comfyui.path import PACK_ROOT

pytestmark = pytest.mark.any_cell("the server's answers: the page asks for nothing here")


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


def test_every_route_of_the_pack_is_listed_here(canvas: Canvas) -> None:
    source = (PACK_ROOT / "nodes" / "browser" / "routes.py").read_text(encoding="utf-8")
    added = set(re.findall(r'table\.(get|post)\(f"\{PREFIX\}/([\w]+)', source))
    assert added == {("get", "runs"), ("get", "verdicts"), ("post", "check"), ("post", "doctor")}


def test_two_browsers_cannot_keep_the_doctor_busy_twice(canvas: Canvas) -> None:
    with ThreadPoolExecutor(2) as browsers:
        answers = list(browsers.map(lambda _: answer(canvas, "/draftattention/doctor", b""), range(2)))
    assert sorted(status for status, _ in answers) in ([200, 409], [200, 200]), "the second may come after the first"
    assert all("busy" in str(said) for status, said in answers if status == 409)


def test_a_browser_that_goes_away_does_not_leave_the_doctor_busy(canvas: Canvas) -> None:
    leave(canvas, b"POST /draftattention/doctor HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    for _ in range(60):
        status, said = answer(canvas, "/draftattention/doctor", b"")
        if status == 200:
            break
        time.sleep(0.5)
    assert status == 200 and "Backends" in str(said)


def test_a_browser_that_goes_away_while_it_asks_leaves_the_others_alone(canvas: Canvas) -> None:
    head = b"POST /draftattention/check HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    for _ in range(3):
        leave(canvas, head + b'{"node": "Apply')
    assert check(canvas, "ApplyDraftAttention", tile="4x4x8") == (200, {})


def leave(canvas: Canvas, request: bytes) -> None:
    """Begin to ask, and be gone before there is an answer."""
    place = urlsplit(canvas.server.url)
    assert place.hostname and place.port
    with socket.create_connection((place.hostname, place.port), timeout=10) as line:
        line.sendall(request)
        time.sleep(0.1)
