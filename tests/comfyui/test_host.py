"""Against real ComfyUI installations: every model and every behaviour. Without one everything is skipped."""

from __future__ import annotations

import pytest

from tests.comfyui.matrix import DENSE_MARK, MARKS, TARGET, documented
from tests.comfyui.results import MODULES, names, results
from tools.comfyui.path import NOT_FOUND, ComfyUIInstall, find_all_comfyui

INSTALLS = find_all_comfyui()


@pytest.mark.comfyui
@pytest.mark.skipif(not INSTALLS, reason=NOT_FOUND)
@pytest.mark.parametrize("install", INSTALLS or [None], ids=lambda i: f"ComfyUI-{i.version}" if i else "none")
@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module in MODULES for name in names(module)],
)
def test_check(install: ComfyUIInstall, module: str, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    found = results(install, module, tmp_path_factory.getbasetemp())
    assert name in found, found.get("", f"the check {name!r} did not run")
    outcome = found[name]["outcome"]
    shown = documented(TARGET.read_text(encoding="utf-8")).get(name, {}).get(install.version, MARKS[outcome])
    assert shown == MARKS[outcome] or (shown, outcome) == (DENSE_MARK, "passed"), (
        f"docs/compatibility.md says {shown}: run python -m tests.comfyui.matrix"
    )
    if outcome == "skipped":
        pytest.skip(f"ComfyUI {install.version}: {found[name]['detail']}")
    assert outcome == "passed", found[name]["detail"]
