"""Finding ComfyUI: the order of places, the choice of Python, and errors for variables that name nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tools.comfyui.path import ComfyUIPathError, find_all_comfyui, find_comfyui


def make_comfyui(path: Path, version: str = "0.33.0") -> Path:
    (path / "comfy").mkdir(parents=True)
    (path / "custom_nodes" / "pack").mkdir(parents=True)
    for name in ("main.py", "nodes.py", "folder_paths.py"):
        (path / name).touch()
    (path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return path


def test_the_variable_comes_before_the_packs_own_place_and_that_before_the_home_folder(tmp_path: Path) -> None:
    named, around, home = (make_comfyui(tmp_path / place / "ComfyUI") for place in ("named", "around", "home"))
    pack = around / "custom_nodes" / "pack"

    found = find_comfyui({"COMFYUI_PATH": str(named)}, pack_root=pack, home=home.parent)
    assert found is not None and (found.path, found.found_by) == (named, "COMFYUI_PATH")
    found = find_comfyui({}, pack_root=pack, home=home.parent)
    assert found is not None and found.path == around
    found = find_comfyui({}, pack_root=tmp_path / "elsewhere", home=home.parent)
    assert found is not None and (found.path, found.version) == (home, "0.33.0")
    assert find_comfyui({}, pack_root=tmp_path / "elsewhere", home=tmp_path) is None


@pytest.mark.parametrize("place", [".venv/bin/python", "venv/Scripts/python.exe", "../python_embeded/python.exe"])
def test_comfyui_runs_with_its_own_python_where_it_has_one(tmp_path: Path, place: str) -> None:
    comfyui = make_comfyui(tmp_path / "portable" / "ComfyUI")
    environ = {"COMFYUI_PATH": str(comfyui)}
    found = find_comfyui(environ)
    assert found is not None and found.python == Path(sys.executable)

    python = comfyui / place
    python.parent.mkdir(parents=True)
    python.touch()
    found = find_comfyui(environ)
    assert found is not None and found.python.samefile(python)

    found = find_comfyui({**environ, "COMFYUI_PYTHON": sys.executable})
    assert found is not None and found.python == Path(sys.executable)


def test_a_variable_that_names_nothing_is_an_error(tmp_path: Path) -> None:
    comfyui = make_comfyui(tmp_path / "ComfyUI")
    with pytest.raises(ComfyUIPathError, match="COMFYUI_PATH names .*, which is not a ComfyUI folder"):
        find_comfyui({"COMFYUI_PATH": str(tmp_path)})
    with pytest.raises(ComfyUIPathError, match="COMFYUI_PYTHON names .*, which is not a file"):
        find_comfyui({"COMFYUI_PATH": str(comfyui), "COMFYUI_PYTHON": str(tmp_path / "python")})
    with pytest.raises(ComfyUIPathError, match="COMFYUI_PATHS names"):
        find_all_comfyui({"COMFYUI_PATHS": os.pathsep.join([str(comfyui), str(tmp_path)])})


def test_several_comfyui_versions_can_be_named_at_once(tmp_path: Path) -> None:
    paths = [make_comfyui(tmp_path / version / "ComfyUI", version) for version in ("0.14.0", "0.38.0")]
    found = find_all_comfyui({"COMFYUI_PATHS": os.pathsep.join(map(str, paths))})
    assert [install.version for install in found] == ["0.14.0", "0.38.0"]
    assert [install.path for install in find_all_comfyui({"COMFYUI_PATH": str(paths[0])})] == [paths[0]]
