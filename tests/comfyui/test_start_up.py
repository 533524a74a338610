"""Starting ComfyUI with the pack costs next to nothing: no module beyond the host's own, no Triton, no complaint."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.comfyui.results import start_up
from tools.comfyui.path import NOT_FOUND, ComfyUIInstall, find_all_comfyui

INSTALLS = find_all_comfyui()


@pytest.mark.comfyui
@pytest.mark.skipif(not INSTALLS, reason=NOT_FOUND)
@pytest.mark.parametrize("install", INSTALLS or [None], ids=lambda i: f"ComfyUI-{i.version}" if i else "none")
def test_loading_the_pack_imports_nothing_but_its_own_modules(
    install: ComfyUIInstall, tmp_path_factory: pytest.TempPathFactory, record_property: Callable[[str, object], None]
) -> None:
    found = start_up(install, tmp_path_factory.getbasetemp())
    assert len(found["nodes"]) == 11
    assert found["imported"] == []
    assert "draft_pack.nodes.apply" in found["pack"]
    kernels = {name for name in found["pack"] if ".kernels" in name}
    assert kernels <= {"draft_pack.kernels", "draft_pack.kernels.types"}, "all others import Triton"
    assert "Traceback" not in found["complaints"]
    # The time is written into docs/compatibility.md; on a busy machine it would say more of the machine than of us.
    record_property("cpu_seconds", found["cpu_seconds"])
