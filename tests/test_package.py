"""`pip install .` gives one package, `draftattention`: core and kernels, enough for the README's Python."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.published import clone_into, tracked_files
from tools.comfyui.path import PACK_ROOT

INSTALLED_FOLDERS = ("draftattn_core/", "kernels/")
# What the product reads where it is at hand and does without elsewhere; diffusers is an extra.
OPTIONAL = {"comfy_kitchen", "diffusers", "triton"}
IMPORT_NAMES = {"pillow": "PIL"}

SMALL_GRID = "TokenGrid(3, 9, 10)"
PRELUDE = """
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
"""
INPUTS = """
q, k, v = (torch.randn(1, 2, 3 * 9 * 10, 64) for _ in range(3))
"""
CHECK_ATTENTION = """
assert out.shape == q.shape and out.isfinite().all() and not torch.equal(out, v)
"""
# The sampling loop of a pipeline, without text encoder and VAE.
PIPE = """
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel

class Pipe:
    transformer = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=8, freq_dim=8,
        ffn_dim=8, num_layers=1, rope_max_seq_len=32,
    )

    @torch.no_grad()
    def __call__(self, prompt, num_inference_steps):
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(num_inference_steps)
        latent, text = torch.randn(1, 4, 3, 8, 8), torch.randn(1, 5, 8)
        for t in scheduler.timesteps:
            predicted = self.transformer(hidden_states=latent, timestep=t.expand(1), encoder_hidden_states=text).sample
            latent = scheduler.step(predicted, t, latent).prev_sample
        return latent

pipe, prompt = Pipe(), "a cat walks on grass"
"""
CHECK_DIFFUSERS = """
assert video.isfinite().all()
assert len(handle.report.calls) == 20 and not handle.active
"""


def run_python(*words: str, cwd: Path, python_path: Path | None = None) -> str:
    """What a new Python prints that finds the package in `python_path` and nothing of the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if python_path is not None:
        environment["PYTHONPATH"] = str(python_path)
    result = subprocess.run([sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("setuptools", "build"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    return clone_into(tmp_path_factory.mktemp("a pack-0.1") / "its folder")


@pytest.fixture(scope="module")
def distributions(checkout: Path) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    run_python("-m", "build", "--no-isolation", "--outdir", "dist", cwd=checkout)
    return checkout / "dist"


@pytest.fixture(scope="module")
def site_packages(checkout: Path) -> Path:
    """A folder that `pip install .` filled."""
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run_python("-m", "pip", "install", *options, "--target", "site", ".", cwd=checkout)
    return checkout / "site"


@pytest.fixture(scope="module")
def expected() -> set[str]:
    """The files that belong into the package, relative to it."""
    return {name for name in tracked_files() if name == "__init__.py" or name.startswith(INSTALLED_FOLDERS)}


def test_pip_installs_one_package_with_the_tracked_files_of_core_and_kernels(
    site_packages: Path, expected: set[str]
) -> None:
    assert sorted(path.name.partition("-")[0] for path in site_packages.iterdir()) == ["draftattention"] * 2
    package = site_packages / "draftattention"
    files = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert {name for name in files if not name.endswith(".pyc")} == expected


def test_the_wheel_made_from_the_sdist_holds_the_same_files(distributions: Path, expected: set[str]) -> None:
    (wheel,) = distributions.glob("*.whl")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name.removeprefix("draftattention/") for name in names} == expected
    assert all(name.startswith("draftattention/") for name in names)


def test_the_sdist_holds_what_the_wheel_is_made_of_and_nothing_else(distributions: Path, expected: set[str]) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    made_by_setuptools = {name for name in names if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    assert names - made_by_setuptools == expected | {
        "LICENSE",
        "MANIFEST.in",
        "README.md",
        "pyproject.toml",
        "setup.py",
    }


def test_twine_finds_nothing_wrong(distributions: Path) -> None:
    if importlib.util.find_spec("twine") is None:
        pytest.skip("twine is not installed")
    files = [str(path) for path in sorted(distributions.iterdir())]
    assert len(files) == 2
    run_python("-m", "twine", "check", "--strict", *files, cwd=distributions)


def snippets() -> list[str]:
    found = re.findall(r"^```python\n(.+?)^```", (PACK_ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert found, "the README has no Python snippet"
    return found


@pytest.mark.parametrize("index", range(len(snippets())))
def test_the_readmes_python_runs_with_the_installed_package_alone(
    index: int, site_packages: Path, tmp_path: Path
) -> None:
    """As it stands but for the grid, which is made small where the snippet makes one."""
    snippet = snippets()[index]
    diffusers = "pipe" in snippet
    if diffusers and importlib.util.find_spec("diffusers") is None:
        pytest.skip("diffusers is not installed")
    before, after = (PIPE, CHECK_DIFFUSERS) if diffusers else (INPUTS, CHECK_ATTENTION)
    text, changed = re.subn(r"TokenGrid\([\d, ]+\)", SMALL_GRID, snippet)
    assert changed == (not diffusers)
    where = "import draftattention; print(draftattention.__file__)"
    out = run_python("-c", "\n".join((PRELUDE, before, text, after, where)), cwd=tmp_path, python_path=site_packages)
    assert Path(out.splitlines()[-1]) == site_packages / "draftattention" / "__init__.py"


def test_every_public_name_is_there_without_comfyui(site_packages: Path, tmp_path: Path) -> None:
    code = """
import inspect, sys, draftattention
names = [n for n in draftattention.__all__ if n != "apply_draft_attention" or "diffusers" in sys.argv]
for name in names:
    assert getattr(draftattention, name) is not None
assert inspect.iscoroutinefunction(draftattention.comfy_entrypoint)
assert not [n for n in sys.modules if n.split(".")[0] in ("comfy", "nodes", "kernels", "tools", "diffusers")]
import draftattention.draftattn_core.doctor.diagnose, draftattention.draftattn_core.views.charts
"""
    run_python("-c", code, "diffusers", cwd=tmp_path, python_path=site_packages)


def test_a_checkout_wins_over_an_installed_copy(checkout: Path, site_packages: Path) -> None:
    """In the checkout's folder the name means its own files, whether or not another copy is installed."""
    where = "import draftattention; print(draftattention.__file__, *draftattention.__path__, sep='\\n')"
    for installed in (None, site_packages):
        out = run_python("-c", where, cwd=checkout, python_path=installed)
        assert [Path(line) for line in out.splitlines()] == [checkout / "__init__.py", checkout]


def third_party_imports() -> set[str]:
    found: set[str] = set()
    for name in tracked_files():
        if name.endswith(".py") and name.startswith(INSTALLED_FOLDERS):
            for node in ast.walk(ast.parse((PACK_ROOT / name).read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names)


def test_what_is_imported_is_what_is_required() -> None:
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    project = tomllib.loads((PACK_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {IMPORT_NAMES.get(name, name) for name in project["dependencies"]}
    assert third_party_imports() - OPTIONAL == required
