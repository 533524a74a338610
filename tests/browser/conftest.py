"""One host per front end, one page per renderer; a test that asks for `canvas` runs in every cell of that matrix."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.browser.canvas import Canvas
from tests.browser.parts import ABSENT, NO_SECOND, FrontEnd, chromium, front_ends, missing
from tests.published import clone_into
from tools.comfyui.path import PACK_ROOT, find_comfyui
from tools.comfyui.server import ComfyUIServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHECKPOINT = PACK_ROOT / "demo" / "tiny_wan.safetensors"
ARGUMENTS = ["--no-sandbox", "--use-gl=swiftshader", "--enable-unsafe-swiftshader", "--disable-dev-shm-usage"]
WINDOW = {"width": 1280, "height": 900}
RENDERERS = {"classic": False, "nodes2": True}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "canvas" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")


CELLS = [(front, renderer) for front in front_ends() for renderer in RENDERERS]


class Hosts:
    """One host at a time: asking for another front end stops the one before."""

    def __init__(self) -> None:
        self._front: FrontEnd | None = None
        self._open = ExitStack()

    def get(self, front: FrontEnd) -> ComfyUIServer:
        if front != self._front:
            self.close()
            install = find_comfyui()
            assert install is not None
            threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
            started = ComfyUIServer(install, [CHECKPOINT], front.options, threads, pack=clone_into)
            self._server = self._open.enter_context(started)
            self._front = front
        return self._server

    def close(self) -> None:
        self._front = None
        self._open.close()


@pytest.fixture(scope="session")
def hosts() -> Iterator[Hosts]:
    made = Hosts()
    yield made
    made.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="session", params=CELLS, ids=lambda cell: f"{cell[0].name}-{cell[1]}")
def opened(request: pytest.FixtureRequest, hosts: Hosts) -> Iterator[Canvas]:
    """The page of one cell, loaded once."""
    front, renderer = request.param
    why_not = NO_SECOND if front is ABSENT else missing()
    if why_not:
        pytest.skip(why_not)
    browser: Browser = request.getfixturevalue("browser")
    context = browser.new_context(viewport=WINDOW)  # type: ignore[arg-type]
    canvas = Canvas(context.new_page(), hosts.get(front), RENDERERS[renderer])
    canvas.open()
    yield canvas
    context.close()


@pytest.fixture
def canvas(opened: Canvas) -> Iterator[Canvas]:
    """The page of one cell with an empty graph; the test fails if the pack's scripts complain."""
    opened.errors.clear()
    opened.clear()
    yield opened
    assert not opened.errors, "\n".join(opened.errors)
