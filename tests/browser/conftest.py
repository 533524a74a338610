"""One host per front end, one page per renderer; a test that asks for `canvas` runs in every cell of that matrix.

A test whose subject cannot differ by renderer says why and runs once per front end: `@pytest.mark.any_renderer("why")`;
one whose subject is not the page at all runs once: `@pytest.mark.any_cell("why")`.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.canvas import FROM_ARCHIVE, Canvas
from tests.browser.parts import ABSENT, NO_SECOND, FrontEnd, chromium, front_ends, missing
from tests.published import clone_into, unpacked_archive_into
from tools.comfyui.path import PACK_ROOT, find_comfyui
from tools.comfyui.server import ComfyUIServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHECKPOINT = PACK_ROOT / "demo" / "tiny_wan.safetensors"
ARGUMENTS = ["--no-sandbox", "--use-gl=swiftshader", "--enable-unsafe-swiftshader", "--disable-dev-shm-usage"]
WINDOW = {"width": 1280, "height": 900}
RENDERERS = {"classic": False, "nodes2": True}
CELLS = [(front, renderer) for front in front_ends() for renderer in RENDERERS]


def enough(item: pytest.Item, cell: tuple[FrontEnd, str]) -> tuple[FrontEnd, str]:
    """The cell in which a test runs for this one: itself, unless the test says that it is the same in others."""
    if item.get_closest_marker("any_cell"):
        return CELLS[0]
    return (cell[0], CELLS[0][1]) if item.get_closest_marker("any_renderer") else cell


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what needs a browser, and leave out the cells that a test says are all the same to it.

    Other languages come last in each cell, one after the other: the page is loaded anew for each change of language.
    """
    spare = []
    for item in items:
        if "canvas" not in getattr(item, "fixturenames", ()):
            continue
        item.add_marker("browser")
        cell = item.callspec.params["opened"]  # type: ignore[attr-defined]
        if cell != enough(item, cell):
            spare.append(item)
    if spare:
        config.hook.pytest_deselected(items=spare)
        left_out = set(spare)
        items[:] = [item for item in items if item not in left_out]
    places = [index for index, item in enumerate(items) if item.get_closest_marker("browser")]
    for index, item in zip(places, sorted((items[index] for index in places), key=cell_and_language)):
        items[index] = item


def cell_and_language(item: pytest.Item) -> tuple[int, str]:
    """Where a test runs, as its place among the cells, and the language that it asks for; English is the page's own."""
    marker = item.get_closest_marker("language")
    return CELLS.index(item.callspec.params["opened"]), str(marker.args[0]) if marker else ""  # type: ignore[attr-defined]


def clone_and_archive(target: Path) -> None:
    """The pack as a clone, and beside it what the registry hands out, whose nodes would be the same ones twice."""
    clone_into(target)
    if importlib.util.find_spec("comfy_cli") is None:
        return
    archive = target.parent / FROM_ARCHIVE
    with tempfile.TemporaryDirectory() as home:
        unpacked_archive_into(archive, clone_into(Path(home) / "to_pack"), Path(home))
    (archive / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n", encoding="utf-8")


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
            started = ComfyUIServer(install, [CHECKPOINT], front.options, threads, pack=clone_and_archive)
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
def canvas(request: pytest.FixtureRequest, opened: Canvas) -> Iterator[Canvas]:
    """The page of one cell with an empty graph, in English unless the test is marked with a language.

    The test fails if the pack's scripts complain, or if it leaves a sidebar open, which would cover what others click.
    """
    language = request.node.get_closest_marker("language")
    opened.speak(language.args[0] if language else "en")
    opened.errors.clear()
    opened.clear()
    yield opened
    assert not opened.close_sidebar()
    assert not opened.errors, "\n".join(opened.errors)
