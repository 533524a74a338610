"""The GitHub workflows are YAML that does what it should: triggers, commands that exist, what we support."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import run
from tools.comfyui.path import PACK_ROOT

FOLDER = PACK_ROOT / ".github" / "workflows"
PATHS = sorted(FOLDER.glob("*.yml"))
if not PATHS:
    pytest.skip("no GitHub workflows in this copy", allow_module_level=True)


def load(path: Path) -> dict[str, Any]:
    # YAML 1.1 reads the key `on` as true.
    loaded: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in loaded.items()}


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in load(path)["jobs"].values() for step in job["steps"]]


def scripts(path: Path) -> list[str]:
    """Shell text of the steps, with a word in the place of every expression."""
    return [re.sub(r"\$\{\{.*?\}\}", "word", step["run"]) for step in steps(path) if "run" in step]


def test_there_is_one_to_publish_and_one_to_test() -> None:
    assert {path.stem for path in PATHS} == {"publish", "tests"}
    assert set(load(FOLDER / "tests.yml")["on"]) == {"push", "pull_request"}
    assert load(FOLDER / "publish.yml")["on"]["push"]["tags"] == ["v*"]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_step_does_one_thing_and_every_action_has_a_version(path: Path) -> None:
    for step in steps(path):
        assert ("uses" in step) != ("run" in step), step
        assert "run" in step or re.fullmatch(r"[\w.-]+/[\w.-]+@v\d+", step["uses"]), step


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_script_is_shell_and_calls_commands_that_exist(path: Path) -> None:
    for script in scripts(path):
        if shutil.which("bash"):
            subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        for words in re.findall(r"python run\.py (.+)", script):
            run.parse(words.split())


def test_what_is_tested_is_what_is_supported() -> None:
    jobs = load(FOLDER / "tests.yml")["jobs"]
    matrix = jobs["test"]["strategy"]["matrix"]
    pythons = {*matrix["python"], *(entry["python"] for entry in matrix["include"])}
    first, last = run.OLDEST[1], run.NEWEST[1]
    assert pythons == {f"3.{minor}" for minor in range(first, last + 1)}
    text = (PACK_ROOT / "pyproject.toml").read_text(encoding="utf-8")
    floor = re.search(r'requires-comfyui = ">=([\d.]+)"', text)
    assert floor is not None and f"v{floor.group(1)}" in jobs["host"]["strategy"]["matrix"]["comfyui"]


def test_all_kernels_are_compiled_in_a_job_of_their_own() -> None:
    commands = [step.get("run", "") for step in load(FOLDER / "tests.yml")["jobs"]["aot"]["steps"]]
    assert any(command.startswith("python run.py bench aot --all") for command in commands)


def test_publishing_uses_the_registrys_action_and_its_token() -> None:
    (publish,) = [step for step in steps(FOLDER / "publish.yml") if "publish-node-action" in step.get("uses", "")]
    assert publish["with"]["personal_access_token"] == "${{ secrets.REGISTRY_ACCESS_TOKEN }}"
