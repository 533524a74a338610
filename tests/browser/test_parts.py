"""What the browser tests look for on a machine, and what is said where it is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.browser import parts


def test_a_second_front_end_is_named_by_its_version_or_its_folder(tmp_path: Path) -> None:
    wheel = tmp_path / "comfyui_frontend_package" / "static"
    plain = tmp_path / "mine"
    for folder in (wheel, plain):
        folder.mkdir(parents=True)
        (folder / "index.html").touch()
    (tmp_path / "comfyui_frontend_package-9.8.7.dist-info").mkdir()
    found = parts.front_ends({"COMFYUI_FRONT_ENDS": f"{wheel}{os.pathsep}{plain}"})
    assert [front.name for front in found] == ["pinned", "9.8.7", "mine"]
    assert [front.options for front in found] == [(), *(("--front-end-root", str(path)) for path in (wheel, plain))]


def test_without_a_second_front_end_its_tests_are_still_counted() -> None:
    assert parts.front_ends({}) == [parts.PINNED, parts.ABSENT]


def test_a_front_end_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"which holds no index\.html"):
        parts.front_ends({"COMFYUI_FRONT_ENDS": str(tmp_path)})


def test_a_chromium_that_is_named_but_not_there_is_none(tmp_path: Path) -> None:
    assert parts.chromium({"CHROMIUM_PATH": str(tmp_path / "chromium")}) is None
    (tmp_path / "chromium").touch()
    assert parts.chromium({"CHROMIUM_PATH": str(tmp_path / "chromium")}) == str(tmp_path / "chromium")
