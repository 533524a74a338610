"""docs/browser.md says which tests hold what users rely on: they are there, and each runs in every cell."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tools.comfyui.path import PACK_ROOT

HERE = Path(__file__).resolve().parent
FEWER = re.compile(r"any_cell|any_renderer")
LISTED = "## Which test holds what"


def listed() -> list[tuple[str, list[str]]]:
    """Files of tests, each with parts of the names of tests in it, none where all are meant."""
    text = (PACK_ROOT / "docs" / "browser.md").read_text(encoding="utf-8").partition(LISTED)[2]
    found = []
    for row in re.findall(r"^\|[^|]+\|([^|]+)\|$", text, re.MULTILINE):
        for file, names in re.findall(r"`(test_\w+\.py)`(:(?: `\w+`,?)+)?", row):
            found.append((file, re.findall(r"`(\w+)`", names)))
    return found


def in_file(file: str) -> dict[str, bool]:
    """Tests of a file that ask for a page, and whether each runs in every cell."""
    tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    narrow = {ast.unparse(node.targets[0]) for node in assigned if FEWER.search(ast.unparse(node.value))}
    assert "pytestmark" not in narrow, file
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and any(one.arg == "canvas" for one in node.args.args):
            marks = " ".join(map(ast.unparse, node.decorator_list))
            found[node.name] = not FEWER.search(marks) and not narrow & set(re.findall(r"\w+", marks))
    return {name: everywhere for name, everywhere in found.items() if name.startswith("test_")}


@pytest.mark.parametrize(("file", "parts"), listed(), ids=lambda one: str(one)[:40])
def test_a_promise_has_tests_that_run_in_every_cell(file: str, parts: list[str]) -> None:
    tests = in_file(file)
    meant = [name for name in tests if any(part in name for part in parts) or not parts]
    assert meant and all(any(part in name for name in tests) for part in parts)
    assert all(tests[name] for name in meant)


def test_every_promise_is_listed() -> None:
    assert len(listed()) > 12
