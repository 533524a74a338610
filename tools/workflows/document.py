"""Pictures of the widgets for docs/browser.md on the tiny model: python -m tools.workflows.document FOLDER

Writes report_on_node.png, live_map.png, draft_map_viewer.png and runs_tab.png, drawn by Nodes 2.0. Look at them before
they go to docs/pictures: times and factors are this machine's. Needs what tools/workflows/photograph.py needs.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.comfyui.path import NOT_FOUND, find_comfyui
from tools.comfyui.server import ComfyUIServer
from tools.workflows import browser
from tools.workflows.demo import WEIGHTS
from tools.workflows.graph import Graph
from tools.workflows.photograph import ARGUMENTS, CHECKPOINT, LATER

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

WINDOW, NARROW = {"width": 1900, "height": 1600}, {"width": 1280, "height": 900}
NODES = {
    "report_on_node": "DraftAttentionReport",
    "live_map": "ApplyDraftAttention",
    "draft_map_viewer": "DraftAttentionPreview",
}
# The pictures before which the graph runs: the report's without skipped steps, the others' with them.
RUNS = {"report_on_node": False, "live_map": True}
SKIP = """(skip) => {
    app.graph.nodes.find((one) => one.type === 'DraftAttentionSkipSteps').mode = skip ? 0 : 4
}"""
MARGIN = 12
# The part of the sidebar that is shown: its width and height in pixels.
SIDEBAR = (313, 470)
TAB = "DraftAttention: runs and doctor"
STEPS = 12
SIZE: dict[str, Any] = {"width": 480, "height": 320, "length": 17}


def graph(info: dict[str, Any]) -> Graph:
    """Skipped steps, captured maps and a report behind one sampler."""
    made = Graph("document", info)
    loaded = made.add("UNETLoader", 0, models=[WEIGHTS], unet_name=WEIGHTS["name"]).out()
    prompt = made.add("DraftAttentionDemoPrompt", 0, prompt="both").out()
    latent = made.add("EmptyHunyuanLatentVideo", 0, **SIZE).out()
    values: dict[str, Any] = {"preset": "custom", "sparsity": 0.8, "dense_start": 0.2, "min_tokens": 0}
    applied = made.add("ApplyDraftAttention", 1, model=loaded, box=(400, 612), **values)
    skipping = made.add("DraftAttentionSkipSteps", 0, model=applied.out("model")).out("model")
    captured = made.add("DraftAttentionCapture", 0, model=skipping, report=applied.out("report"), step=-1, layer=-1)
    sampling: dict[str, Any] = {"seed": 7, "steps": STEPS, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    inputs: dict[str, Any] = {
        "model": captured.out("model"),
        "positive": prompt,
        "negative": prompt,
        "latent_image": latent,
    }
    out = made.add("KSampler", 1, **inputs, **sampling).out()
    made.add("DraftAttentionPreview", 2, box=(400, 665), capture=captured.out("capture"), samples=out)
    made.add("DraftAttentionReport", 3, box=(480, 1111), report=applied.out("report"), after=out)
    return made


def shoot(page: Page, element: Locator, path: Path, size: tuple[int, int] | None = None) -> None:
    """Photograph an element with a margin, or as much as `size` from its upper left corner."""
    box = element.bounding_box()
    assert box is not None
    x, y, wide, high = box["x"], box["y"], box["width"], box["height"]
    if size is None:
        x, y, wide, high = x - MARGIN, y - MARGIN, wide + 2 * MARGIN, high + 2 * MARGIN
    else:
        wide, high = size
    page.screenshot(path=path, clip={"x": x, "y": y, "width": wide, "height": high})
    print(f"{path.name}: {wide:.0f}x{high:.0f}")


def document(page: Page, server: ComfyUIServer, folder: Path) -> str:
    """Run the graph and write the pictures; returns how the last run ended."""
    browser.open_page(page, server, True)
    browser.load(page, graph(server.get("/object_info")).to_json())
    ended = ""
    for name, kind in NODES.items():
        if name in RUNS:
            page.evaluate(SKIP, RUNS[name])
            ended = browser.run(page)
            page.wait_for_timeout(LATER)
            browser.settle(page)
        # Nodes 2.0 draws what is in view, at full size only if the view has it.
        ident = page.evaluate(
            """async (kind) => {
                const node = app.graph.nodes.find((one) => one.type === kind)
                app.canvas.ds.scale = 1
                app.canvas.ds.offset = [60 - node.pos[0], 80 - node.pos[1]]
                app.canvas.setDirty(true, true)
                return node.id
            }""",
            kind,
        )
        page.wait_for_timeout(LATER)
        shoot(page, page.locator(f'[data-node-id="{ident}"]').first, folder / f"{name}.png")
    page.set_viewport_size(NARROW)
    page.evaluate("() => { app.extensionManager.focusMode = false }")
    page.get_by_role("button", name=TAB).first.click()
    card = page.locator(".draftattention-run").first
    card.locator("summary").click()
    page.wait_for_timeout(LATER)
    shoot(page, page.locator(".draftattention-runs").first, folder / "runs_tab.png", SIDEBAR)
    return ended


def main() -> int:
    if len(sys.argv) != 2:
        print("python -m tools.workflows.document FOLDER")
        return 1
    from playwright.sync_api import sync_playwright

    install = find_comfyui()
    chromium = os.environ.get("CHROMIUM_PATH") or shutil.which("chromium") or shutil.which("google-chrome")
    if install is None or chromium is None:
        print(NOT_FOUND if install is None else "no Chromium found: set CHROMIUM_PATH to its executable")
        return 1
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with ComfyUIServer(install, [CHECKPOINT]) as server, sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        ended = document(opened.new_page(viewport=WINDOW), server, folder)
        opened.close()
    print(ended)
    return 0 if ended == "execution_success" else 1


if __name__ == "__main__":
    sys.exit(main())
