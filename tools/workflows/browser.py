"""A page with ComfyUI's front end in it, for looking at workflows: what overlaps, and photographs. Needs Playwright."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tools.comfyui.server import ComfyUIServer

READY = "() => window.app?.canvas && window.app.extensionManager?.workflow?.activeWorkflow?.activeState"
NODES_2 = "Comfy.VueNodes.Enabled"
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Locale": "en",
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
}
PATIENCE = 120_000
# A node's title in the classic renderer stands above its box.
TITLE = 30
# Nodes 2.0 puts elements of nodes a moment after the graph is loaded, and measures them.
SETTLED = """async () => {
    const stand = () => {
        const nodes = app.graph.nodes.map((node) => {
            const shown = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect()
            if (LiteGraph.vueNodesMode && !shown) return null
            return [...node.pos, ...node.size, shown?.left, shown?.top, shown?.width, shown?.height].join()
        })
        return nodes.includes(null) ? null : nodes.join(';')
    }
    let [last, since] = [stand(), performance.now()]
    for (const end = since + 5000; performance.now() < end; ) {
        await new Promise(requestAnimationFrame)
        const now = stand()
        if (now === null || now !== last) [last, since] = [now, performance.now()]
        else if (performance.now() - since > 500) return
    }
}"""


@dataclass(frozen=True)
class Box:
    """Where a node stands, in the graph's coordinates, its title included."""

    name: str
    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        aside = self.right <= other.left or other.right <= self.left
        return not (aside or self.bottom <= other.top or other.bottom <= self.top)


def overlapping(boxes: list[Box]) -> list[tuple[str, str]]:
    """Names of every two nodes that overlap."""
    return [(one.name, other.name) for one, other in combinations(boxes, 2) if one.overlaps(other)]


def open_page(page: Page, server: ComfyUIServer, nodes_2: bool, **settings: Any) -> None:
    """Load the front end with one of its two renderers, and nothing in the way of the canvas."""
    body = json.dumps({**SETTINGS, **settings, NODES_2: nodes_2}).encode()
    request = urllib.request.Request(f"{server.url}/settings", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=30).close()
    page.goto(server.url, timeout=PATIENCE)
    page.wait_for_function(READY, timeout=PATIENCE)
    page.evaluate("() => { app.extensionManager.focusMode = true }")


def load(page: Page, workflow: dict[str, Any]) -> list[str]:
    """Open a workflow; returns the types of nodes that the host does not have."""
    missing: list[str] = page.evaluate(
        """async (graph) => {
            await app.loadGraphData(graph)
            const unknown = app.graph.nodes.filter((node) => !LiteGraph.registered_node_types[node.type])
            return unknown.map((node) => node.type)
        }""",
        workflow,
    )
    fit(page)
    settle(page)
    return missing


def settle(page: Page) -> None:
    """Wait until every node has its element and none has moved for half a second, five seconds at most."""
    page.evaluate(SETTLED)


def fit(page: Page) -> None:
    """Have the whole graph in view: Nodes 2.0 draws nothing that is not."""
    page.evaluate(
        """(title) => {
            const nodes = app.graph.nodes
            const left = Math.min(...nodes.map((node) => node.pos[0])) - 30
            const top = Math.min(...nodes.map((node) => node.pos[1])) - title - 30
            const right = Math.max(...nodes.map((node) => node.pos[0] + node.size[0])) + 30
            const bottom = Math.max(...nodes.map((node) => node.pos[1] + node.size[1])) + 60
            const { canvas, ds } = app.canvas
            const scale = Math.min(canvas.clientWidth / (right - left), canvas.clientHeight / (bottom - top), 1)
            ds.scale = scale
            ds.offset = [-left, -top]
            app.canvas.setDirty(true, true)
        }""",
        TITLE,
    )


def boxes(page: Page, nodes_2: bool) -> list[Box]:
    """Where the nodes stand as they are drawn."""
    found = page.evaluate(
        """async ([nodes2, title]) => {
            app.canvas.setDirty(true, true)
            for (let frame = 0; frame < 5; frame++) await new Promise(requestAnimationFrame)
            const { ds, canvas } = app.canvas
            const origin = canvas.getBoundingClientRect()
            return app.graph.nodes.map((node) => {
                const name = `${node.id} ${node.title}`
                const [x, y] = node.pos
                if (!nodes2) return [name, x, y - title, x + node.size[0], y + node.size[1]]
                const shown = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect()
                if (!shown) return [name, x, y - title, x + node.size[0], y + node.size[1]]
                const place = (at, from, offset) => (at - from) / ds.scale - offset
                return [
                    name,
                    place(shown.left, origin.left, ds.offset[0]),
                    place(shown.top, origin.top, ds.offset[1]),
                    place(shown.right, origin.left, ds.offset[0]),
                    place(shown.bottom, origin.top, ds.offset[1]),
                ]
            })
        }""",
        [nodes_2, TITLE],
    )
    return [Box(*values) for values in found]


def run(page: Page, limit: float = 1_800_000) -> str:
    """Queue the graph and wait for its end; returns the kind of the last message, such as execution_success."""
    ended: str = page.evaluate(
        """async (limit) => {
            const ends = ['execution_success', 'execution_error', 'execution_interrupted']
            const end = new Promise((resolve) => {
                for (const kind of ends) app.api.addEventListener(kind, (event) => resolve(event.type), { once: true })
                setTimeout(() => resolve('timeout'), limit)
            })
            return (await app.queuePrompt(0, 1)) === false ? 'refused' : await end
        }""",
        limit,
    )
    return ended
