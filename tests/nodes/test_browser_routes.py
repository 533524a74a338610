"""What the server tells the pack's scripts: its own data, bounded in size, and 404 for what it does not know."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest


@pytest.fixture
def routes(part):
    return part("nodes.browser.routes")


@pytest.fixture
def verdicts(part):
    return part("nodes.browser.verdicts")


def asked(node: object, values: object) -> bytes:
    return json.dumps({"node": node, "values": values}).encode()


def test_a_check_answers_with_the_problems_by_input(routes) -> None:
    status, answer = routes.answer_check(asked("ApplyDraftAttention", {"tile": "4x4", "dense_layers": "0"}))
    assert status == 200 and list(answer) == ["tile"]
    assert routes.answer_check(asked("ApplyDraftAttention", {})) == (200, {})


def test_a_node_without_texts_of_ours_is_not_found(routes) -> None:
    for node in ("KSampler", "", None, ["ApplyDraftAttention"]):
        assert routes.answer_check(asked(node, {}))[0] == 404


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 20_000,
        asked("ApplyDraftAttention", {"tile": 4}),
        asked("ApplyDraftAttention", {"tile": ["1", 0]}),
        asked("ApplyDraftAttention", ["tile"]),
        asked("ApplyDraftAttention", {"model": "x"}),
        asked("ApplyDraftAttention", {str(n): "" for n in range(33)}),
    ],
    ids=range(10),
)
def test_what_is_not_understood_is_a_bad_request(routes, body: bytes) -> None:
    assert routes.answer_check(body)[0] == 400


def test_a_long_body_is_not_read(routes) -> None:
    assert routes.answer_check(asked("ApplyDraftAttention", {"tile": "x" * 40_000}))[0] == 413


def test_verdicts_are_bounded_and_the_oldest_go_first(verdicts) -> None:
    kept = verdicts.Verdicts()
    one = verdicts.Verdict("text", False, "prompt", 1.0)
    for number in range(verdicts.MAX_WORKFLOWS + 3):
        kept.keep(f"w{number}", "1", one)
    assert len(kept.workflows()) == verdicts.MAX_WORKFLOWS and kept.of("w2") is None and kept.of("w3") is not None
    for number in range(verdicts.MAX_NODES + 3):
        kept.keep("w3", f"n{number}", one)
    assert len(kept.of("w3")) == verdicts.MAX_NODES and "n2" not in kept.of("w3") and "n3" in kept.of("w3")
    kept.keep("new", "1", one)
    assert kept.of("w3") is not None, "used a moment ago"


def test_a_run_is_kept_under_its_workflow_and_sent_to_all_browsers(part, verdicts) -> None:
    events = part("draftattn_core.run.events")
    channel, sent, kept = events.Events(), [], verdicts.Verdicts()
    jobs = iter([("w", "p1"), ("", "p2")])
    verdicts.announce_verdicts(
        channel, "7", job=lambda: next(jobs), send=lambda *message: sent.append(message), verdicts=kept
    )
    for text in ("x" * 9000, "short"):
        channel.emit(events.RunDone(text, None, 2, 1.0, 1, 2, {}, {}))
    (name, first), (_, second) = sent
    assert name == verdicts.EVENT and (first["node"], first["workflow"], first["prompt"]) == ("7", "w", "p1")
    assert len(first["text"]) == verdicts.MAX_TEXT and first["text"].endswith("[...]")
    assert kept.of("w")["7"]["text"] == first["text"] and kept.workflows() == ["w"], "no workflow, nothing kept"
    assert second["text"] == "short" and second["workflow"] == ""


@pytest.mark.parametrize(
    ("workflow", "found"),
    [("1a-2", "1a-2"), ("0000-00", ""), ("", ""), (None, ""), (5, ""), ("x" * 101, "")],
)
def test_an_id_from_outside_is_taken_only_as_a_short_name(part, workflow: object, found: str) -> None:
    extra = {"extra_pnginfo": {"workflow": {"id": workflow}}}
    queue = SimpleNamespace(get_current_queue_volatile=lambda: ([(0, "p", {}, extra, [], {})], []))
    assert part("nodes.browser.server").running_job(SimpleNamespace(prompt_queue=queue)) == (found, "p")


@pytest.mark.parametrize(
    ("about", "found"),
    [
        ({"title": " Fast one "}, "Fast one"),
        ({"title": "x" * 500}, "x" * 80),
        ({"title": 5}, ""),
        ({"title": None}, ""),
        ({}, ""),
        (None, ""),
        ("text", ""),
    ],
)
def test_a_title_from_outside_is_taken_only_as_a_short_text(part, about: object, found: str) -> None:
    nodes = {"5:7": {"class_type": "X", "inputs": {}, "_meta": about}}
    queue = SimpleNamespace(get_current_queue_volatile=lambda: ([(0, "p", nodes, {}, [], {})], []))
    server = SimpleNamespace(prompt_queue=queue)
    assert part("nodes.browser.server").running_title(server, "5:7") == found
    assert part("nodes.browser.server").running_title(server, "7") == "", "another node"


def test_without_one_running_job_there_is_no_title(part) -> None:
    nodes = {"7": {"_meta": {"title": "one"}}}
    for running in ([], [(0, "p", nodes, {}, [])] * 2):
        queue = SimpleNamespace(get_current_queue_volatile=lambda found=running: (found, []))
        assert part("nodes.browser.server").running_title(SimpleNamespace(prompt_queue=queue), "7") == ""


def test_a_job_without_a_workflow_has_no_id(part) -> None:
    for running in ([], [(0, "p", {}, {}, [])], [(0, "p", {}, {"extra_pnginfo": None}, [])]):
        queue = SimpleNamespace(get_current_queue_volatile=lambda found=running: (found, []))
        assert part("nodes.browser.server").running_job(SimpleNamespace(prompt_queue=queue))[0] == ""
