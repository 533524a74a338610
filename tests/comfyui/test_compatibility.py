"""The tables of models and checks in docs/compatibility.md are the ones the tests wrote."""

from __future__ import annotations

import re

from tests.comfyui.matrix import TARGET, documented, sequence
from tests.comfyui.model_cases import CASES
from tests.comfyui.results import MODULES, names
from tools.comfyui.path import PACK_ROOT

STALE = "stale: run python -m tests.comfyui.matrix"
PAGE = TARGET.read_text(encoding="utf-8")


def test_every_model_and_every_check_has_a_row_and_nothing_else_has() -> None:
    assert list(documented(PAGE)) == [name for module in MODULES for name in names(module)], STALE


def test_the_tokens_of_every_model_are_those_its_test_expects() -> None:
    for case in CASES:
        assert f"| {case.name} | {sequence(case)} |" in PAGE, STALE


def test_the_readme_leads_to_the_table_of_models() -> None:
    assert "(docs/compatibility.md)" in (PACK_ROOT / "README.md").read_text(encoding="utf-8")


def test_two_versions_far_apart_were_tested_and_nothing_failed() -> None:
    versions = {version for marks in documented(PAGE).values() for version in marks}
    assert {tuple(map(int, re.findall(r"\d+", version)))[1] for version in versions} >= {14, 33}
    failed = [name for name, marks in documented(PAGE).items() if "**no**" in marks.values()]
    assert not failed
