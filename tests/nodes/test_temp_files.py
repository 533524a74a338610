"""Files for the browser: under names of the pack's own in the host's temporary folder, and only so much of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture
def files(part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    folder = tmp_path / "temp"
    monkeypatch.setitem(sys.modules, "folder_paths", SimpleNamespace(get_temp_directory=lambda: str(folder)))
    return SimpleNamespace(room=part("nodes.browser.temp_files"), folder=folder)


def test_a_file_is_named_as_the_hosts_route_asks_for_it(files) -> None:
    told = files.room.keep_for_browser(b"data", "bin")
    assert (told["subfolder"], told["type"]) == ("", "temp")
    assert told["filename"].startswith("draftattention_") and told["filename"].endswith(".bin")
    assert (files.folder / told["filename"]).read_bytes() == b"data"


def test_the_oldest_go_and_nobody_elses(files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.room, "MAX_BYTES", 25)
    files.folder.mkdir()
    (files.folder / "ComfyUI_temp_1.png").write_bytes(b"x" * 100)
    names = []
    for age in range(4, 0, -1):
        names.append(files.room.keep_for_browser(b"x" * 10, "bin")["filename"])
        os.utime(files.folder / names[-1], (1000 - age, 1000 - age))
    kept = {path.name for path in files.folder.iterdir()}
    assert kept == {"ComfyUI_temp_1.png", *names[-2:]}


def test_one_that_is_too_large_alone_stays(files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.room, "MAX_BYTES", 5)
    files.room.keep_for_browser(b"x", "bin")
    last = files.room.keep_for_browser(b"x" * 10, "bin")["filename"]
    assert [path.name for path in files.folder.iterdir()] == [last]
