"""A browser page with the host's front end in it: what tests do there, and what they read."""

from __future__ import annotations

import itertools
import json
import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.comfyui.path import PACK_ROOT

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Error, Locator, Page

    from tools.comfyui.server import ComfyUIServer

# The folders of the pack: cloned, and unpacked from the registry's archive.
PACK_NAME, FROM_ARCHIVE = "draftattention", "from_archive"
# The front end opens a workflow of its own at last, which would replace what a test has made before.
READY = "() => window.app?.canvas && window.app.extensionManager?.workflow?.activeWorkflow?.activeState"
START_TIMEOUT, RUN_TIMEOUT = 120_000, 120_000
# The host's names for the settings that tests depend on.
NODES_2, LANGUAGE = "Comfy.VueNodes.Enabled", "Comfy.Locale"
# A place on the canvas where nothing is, and what tells of things on it and around.
NOWHERE, TOOLTIPS = (1100, 840), ".p-tooltip-text, [role=tooltip], .node-tooltip"
SEEDS = itertools.count(1)
SETTINGS = {"Comfy.TutorialCompleted": True, "LiteGraph.Node.TooltipDelay": 50}


@dataclass
class Canvas:
    """The page, in one of the host's two renderers.

    Attributes:
        page: Playwright's.
        server: the host behind it.
        nodes_2: whether nodes are drawn by Nodes 2.0 and not by the classic canvas.
        errors: what the pack's scripts have complained about; tests fail if there is anything in it.
        language: that the page speaks.
    """

    page: Page
    server: ComfyUIServer
    nodes_2: bool
    errors: list[str] = field(default_factory=list)
    language: str = "en"

    def open(self) -> None:
        """Load the front end, wait until it is ready, and choose the renderer."""
        self.listen(self.page)
        self.reload()

    def listen(self, page: Page) -> None:
        """What the pack's scripts complain about on this page counts too."""
        page.on("console", self._heard)
        page.on("pageerror", self._failed)

    @contextmanager
    def other_browser(self) -> Iterator[Page]:
        """Another browser at the same server that has the same workflow open."""
        browser = self.page.context.browser
        assert browser is not None
        context = browser.new_context()
        try:
            page = context.new_page()
            self.listen(page)
            page.goto(self.server.url, timeout=START_TIMEOUT)
            page.wait_for_function(READY, timeout=START_TIMEOUT)
            page.evaluate("(graph) => app.loadGraphData(graph)", self.js("() => app.graph.serialize()"))
            yield page
        finally:
            context.close()

    def reload(self) -> None:
        """Load the page with the settings of this cell, which the host keeps and others may have changed."""
        body = json.dumps({**SETTINGS, LANGUAGE: self.language, NODES_2: self.nodes_2}).encode()
        request = urllib.request.Request(f"{self.server.url}/settings", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=30).close()
        self.page.goto(self.server.url, timeout=START_TIMEOUT)
        self.page.wait_for_function(READY, timeout=START_TIMEOUT)

    def speak(self, language: str) -> None:
        """Have the page in a language, which it reads while it loads."""
        if language != self.language:
            self.language = language
            self.reload()

    def _heard(self, message: ConsoleMessage) -> None:
        place = message.location.get("url", "")
        if message.type == "error" and PACK_NAME in f"{message.text} {place}".lower():
            self.errors.append(f"{message.text} {place}")

    def _failed(self, error: Error) -> None:
        trace = f"{error.message}\n{error.stack or ''}"
        if f"/extensions/{PACK_NAME}/" in trace:
            self.errors.append(trace)

    def js(self, script: str, argument: Any = None) -> Any:
        """Value of a JavaScript function, called in the page with the argument."""
        return self.page.evaluate(script, argument)

    def until(self, condition: str, argument: Any = None, timeout: float = 30_000) -> None:
        """Wait until a JavaScript function is true."""
        self.page.wait_for_function(condition, arg=argument, timeout=timeout)

    def settle(self) -> None:
        """Have the front end take note of what scripts changed, as it does when the user lets go of the mouse."""
        self.until(
            """() => {
                const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker
                if (tracker.captureCanvasState) tracker.captureCanvasState()
                else tracker.checkState()
                return tracker.activeState.nodes.length === app.graph.nodes.length
            }"""
        )
        # Changes within the next 50 ms would count as a part of these.
        self.page.wait_for_timeout(200)

    def frames(self, count: int = 4) -> None:
        """Wait until the page has been drawn some times."""
        self.js("async (count) => { while (count--) await new Promise(requestAnimationFrame) }", count)

    def command(self, name: str) -> None:
        """Run one of the front end's commands."""
        self.js("(name) => app.extensionManager.command.execute(name)", name)

    def clear(self) -> None:
        """An empty workflow with an id of its own, seen at full size from near its origin.

        Older front ends keep the values of widgets by workflow and node, for workflows without an id too.
        """
        self.js(
            """async () => {
                const empty = { id: crypto.randomUUID(), version: 0.4, last_node_id: 0, last_link_id: 0 }
                await app.loadGraphData({ ...empty, nodes: [], links: [], groups: [], config: {}, extra: {} })
                // The front end may still move the view, for the graph that was there before.
                for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame)
                app.canvas.ds.reset()
                app.canvas.ds.offset = [60, 60]
                app.canvas.setDirty(true, true)
            }"""
        )

    def close_sidebar(self) -> str | None:
        """Name of the sidebar's tab that was open, if any."""
        left: str | None = self.js(
            """() => {
                const tabs = app.extensionManager.sidebarTab
                const left = tabs.activeSidebarTabId
                tabs.activeSidebarTabId = null
                return left
            }"""
        )
        return left

    def add(self, kind: str, at: tuple[int, int] = (100, 100)) -> int:
        """Add a node; returns its id."""
        return int(
            self.js(
                """([kind, at]) => {
                    const node = LiteGraph.createNode(kind)
                    app.graph.add(node)
                    node.pos = at
                    return node.id
                }""",
                [kind, list(at)],
            )
        )

    def connect(self, source: int, output: str, target: int, entry: str) -> None:
        """Connect by the names of the slots."""
        done = self.js(
            """([source, output, target, entry]) => {
                const [from, to] = [app.graph.getNodeById(source), app.graph.getNodeById(target)]
                return !!from.connect(from.findOutputSlot(output), to, to.findInputSlot(entry))
            }""",
            [source, output, target, entry],
        )
        assert done, f"{source}.{output} could not be connected to {target}.{entry}"

    def set(self, node: int, **values: Any) -> None:
        """Set widgets as the renderer does when the user edits them."""
        self.js(
            """([id, values]) => {
                const node = app.graph.getNodeById(id)
                for (const [name, value] of Object.entries(values)) {
                    const widget = node.widgets.find((one) => one.name === name)
                    widget.value = value
                    widget.callback?.(value, app.canvas, node)
                }
                app.canvas.setDirty(true, true)
            }""",
            [node, values],
        )

    def widget(self, node: int, name: str, key: str = "value") -> Any:
        """A property of a widget, its value unless told otherwise; None if there is no such widget."""
        return self.js(
            """([id, name, key]) =>
                app.graph.getNodeById(id).widgets?.find((one) => one.name === name)?.[key] ?? null""",
            [node, name, key],
        )

    def load(self, workflow: Path | dict[str, Any]) -> None:
        """Open a workflow in the browser's form."""
        graph = json.loads(workflow.read_text(encoding="utf-8")) if isinstance(workflow, Path) else workflow
        self.js("(graph) => app.loadGraphData(graph)", graph)

    def load_demo(self, steps: int = 2) -> dict[str, int]:
        """The demo workflow's nodes, at a size that runs in a second or two; returns ids by type.

        Each call has a seed of its own: the host would answer a job it knows without running it.
        """
        prompt = json.loads((PACK_ROOT / "workflows" / "api" / "demo_tiny_wan.json").read_text(encoding="utf-8"))
        prompt["6"]["inputs"].update(width=192, height=128, length=9)
        prompt["7"]["inputs"].update(steps=steps, seed=next(SEEDS))
        prompt["2"]["inputs"].update(dense_start=0.0)
        self.clear()
        self.js("(prompt) => app.loadApiJson(prompt, 'demo')", prompt)
        # Workflows that are opened have an id; older front ends give none to those made from a prompt.
        self.js("() => app.loadGraphData(app.graph.serialize())")
        ids = self.js("() => Object.fromEntries(app.graph.nodes.map((node) => [node.type, Number(node.id)]))")
        return dict(ids)

    def run(self) -> str:
        """Queue the graph and wait for its end; returns the kind of the last message, such as execution_success."""
        return str(
            self.js(
                """async (limit) => {
                    const ends = ['execution_success', 'execution_error', 'execution_interrupted']
                    let heard
                    const end = new Promise((resolve) => {
                        heard = (event) => resolve(event.type)
                        for (const kind of ends) app.api.addEventListener(kind, heard)
                        setTimeout(() => resolve('timeout'), limit)
                    })
                    const queued = await app.queuePrompt(0, 1)
                    const last = queued === false ? 'refused' : await end
                    for (const kind of ends) app.api.removeEventListener(kind, heard)
                    return last
                }""",
                RUN_TIMEOUT,
            )
        )

    def row(self, node: int, label: str) -> Locator:
        """The row of a widget in Nodes 2.0, by what its label begins with."""
        rows = self.node_element(node).locator(".lg-node-widget")
        return rows.filter(has=self.page.get_by_text(re.compile(rf"^\s*{re.escape(label)}"))).first

    def text(self, node: int, name: str) -> str:
        """What an element of the pack on a node says; it has to be in sight."""
        self.until(
            """([id, name]) => {
                const node = app.graph.getNodeById(id)
                const element = node.widgets?.find((one) => one.name === name)?.element
                return element?.isConnected && element.getClientRects().length
            }""",
            [node, name],
        )
        script = (
            """([id, name]) => app.graph.getNodeById(id).widgets.find((one) => one.name === name).element.innerText"""
        )
        return str(self.js(script, [node, name]))

    def place(self, node: int, name: str) -> tuple[float, float]:
        """Where the middle of a widget is on the page, on the classic canvas."""
        x, y = self.js(
            """async ([id, name]) => {
                app.canvas.setDirty(true, true)
                for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame)
                const node = app.graph.getNodeById(id)
                const widget = node.widgets.find((one) => one.name === name)
                const at = [node.pos[0] + node.size[0] / 2, node.pos[1] + widget.y + 10]
                const [x, y] = app.canvas.ds.convertOffsetToCanvas(at)
                const box = app.canvas.canvas.getBoundingClientRect()
                return [box.left + x, box.top + y]
            }""",
            [node, name],
        )
        return x, y

    def tooltip(self, node: int, name: str) -> str:
        """What the user is told when the mouse rests on a widget."""
        self.page.mouse.move(*NOWHERE)
        self.until(f"() => ![...document.querySelectorAll('{TOOLTIPS}')].some((one) => one.checkVisibility())")
        if self.nodes_2:
            self.row(node, name).hover(position={"x": 24, "y": 8})
            shown = self.page.locator(".p-tooltip-text, [role=tooltip]").first
        else:
            x, y = self.place(node, name)
            self.page.mouse.move(x, y)
            self.page.mouse.move(x + 2, y)
            shown = self.page.locator(".node-tooltip").first
        shown.wait_for(state="visible", timeout=10_000)
        return str(shown.inner_text())

    def node_element(self, node: int) -> Locator:
        """The element of a node in Nodes 2.0."""
        return self.page.locator(f'[data-node-id="{node}"]').first
