"""The front end with the pack in it: it starts, its templates open, the tiny model runs."""

from __future__ import annotations

from tests.browser.canvas import PACK_NAME, Canvas
from tools.comfyui.path import PACK_ROOT

NAMES = sorted(path.stem for path in (PACK_ROOT / "workflows").glob("*.json"))


def test_the_page_draws_nodes_in_the_renderer_of_its_cell(canvas: Canvas) -> None:
    node = canvas.add("ApplyDraftAttention")
    canvas.until("() => LiteGraph.vueNodesMode !== undefined")
    assert canvas.js("() => LiteGraph.vueNodesMode") == canvas.nodes_2
    if canvas.nodes_2:
        canvas.node_element(node).wait_for()


def test_every_template_of_a_clone_opens_with_all_its_nodes(canvas: Canvas) -> None:
    listed = canvas.js("() => fetch('/api/workflow_templates').then((answer) => answer.json())")
    assert sorted(listed[PACK_NAME]) == NAMES
    for name in NAMES:
        canvas.clear()
        missing = canvas.js(
            """async ([pack, name]) => {
                const base = `/api/workflow_templates/${pack}/${name}`
                const picture = await fetch(`${base}.jpg`)
                const graph = await (await fetch(`${base}.json`)).json()
                await app.loadGraphData(graph)
                const unknown = app.graph.nodes.filter((node) => !LiteGraph.registered_node_types[node.type])
                return [picture.status, graph.nodes.length - app.graph.nodes.length, unknown.map((node) => node.type)]
            }""",
            [PACK_NAME, name],
        )
        assert missing == [200, 0, []], name


def test_the_demo_runs_from_the_browser(canvas: Canvas) -> None:
    canvas.load_demo()
    assert canvas.run() == "execution_success"
