"""Shared by all tests: fixed seeds, one thread, and the fixtures `pack` and `comfyui`."""

from __future__ import annotations

import importlib.util
import random
import sys
from types import ModuleType

import numpy
import pytest
import torch

from tools.comfyui.path import PACK_ROOT, ComfyUIInstall, find_comfyui


def pytest_configure() -> None:
    # The order of a sum depends on the number of threads; one gives the same digits on every machine.
    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that asks for a ComfyUI, so that ``-m comfyui`` selects it."""
    for item in items:
        if "comfyui" in getattr(item, "fixturenames", ()):
            item.add_marker("comfyui")


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    numpy.random.seed(0)  # noqa: NPY002 - libraries that draw from the global state
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def comfyui() -> ComfyUIInstall:
    """The ComfyUI of this machine; the test is skipped where there is none."""
    install = find_comfyui()
    if install is None:
        pytest.skip("no ComfyUI found (set COMFYUI_PATH to its folder)")
    return install


@pytest.fixture(scope="session")
def pack() -> ModuleType:
    """The pack imported the way ComfyUI does it: from its folder, under a name of the host's choice."""
    name = "custom_nodes.a pack-0_1"
    spec = importlib.util.spec_from_file_location(name, PACK_ROOT / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
