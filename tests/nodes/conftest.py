"""The node modules that need no ComfyUI, imported as part of the pack under a name of the host's choice."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest

from tools.comfyui.path import PACK_ROOT

# Not the name of the fixture `pack`, whose test wants to see a pack that has imported nothing.
NAME = "draft attention as the node tests load it"


@pytest.fixture(scope="session")
def part() -> Callable[[str], ModuleType]:
    """Imports a module of the pack by its path inside it, such as "nodes.inputs.curves"."""
    spec = importlib.util.spec_from_file_location(NAME, PACK_ROOT / "__init__.py")
    assert spec is not None and spec.loader is not None
    sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[NAME])
    return lambda path: importlib.import_module(f"{NAME}.{path}")


@pytest.fixture
def with_masks(part: Callable[[str], ModuleType]) -> SimpleNamespace:
    """What choices look at in a profile that has CalibAtt's masks."""
    layout, grid = part("draftattn_core.geometry.layout"), part("draftattn_core.geometry.grid").TokenGrid(9, 24, 40)
    made = layout.Layout(grid, q_block=32, k_block=32, order="raster")
    return SimpleNamespace(calibration=SimpleNamespace(layout=made))
