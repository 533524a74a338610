"""Photographs of the workflows and of the nodes for their help pages: python -m tools.workflows.photograph

Starts ComfyUI (see tools/comfyui/path.py) and a Chromium (CHROMIUM_PATH, or `chromium` on the path; needs Playwright),
opens every workflow in both renderers, and says which nodes are missing or overlap. Then it runs the demo and a graph
with the other nodes, on the tiny model, and writes workflows/*.jpg and web/docs/pictures/*.jpg.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from tools.comfyui.path import NOT_FOUND, PACK_ROOT, find_comfyui
from tools.comfyui.server import ComfyUIServer
from tools.workflows import browser
from tools.workflows.help_graph import SHOWN, help_graph

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WORKFLOWS, HELP = PACK_ROOT / "workflows", PACK_ROOT / "web" / "docs" / "pictures"
CHECKPOINT = PACK_ROOT / "demo" / "tiny_wan.safetensors"
DEMO = "demo_tiny_wan"
ARGUMENTS = ["--no-sandbox", "--use-gl=swiftshader", "--enable-unsafe-swiftshader", "--disable-dev-shm-usage"]
RENDERERS = {"classic": False, "Nodes 2.0": True}
# Wide enough for a whole graph at full size, which is then made smaller: the classic canvas leaves out text when it is
# drawn small.
WINDOW = {"width": 2900, "height": 1500}
WIDTH, HELP_WIDTH = 1600, 560
MOST_BYTES = 120_000
# What a node shows of a run comes a moment after its end.
LATER = 3000


def picture(png: bytes, width: int, path: Path) -> None:
    """Write a JPEG that is at most `width` pixels wide, in the best quality that fits into `MOST_BYTES`."""
    shot = Image.open(io.BytesIO(png)).convert("RGB")
    if shot.width > width:
        shot = shot.resize((width, round(shot.height * width / shot.width)), Image.Resampling.LANCZOS)
    path.parent.mkdir(parents=True, exist_ok=True)
    for quality in (90, 85, 80, 72, 64):
        shot.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= MOST_BYTES:
            break
    print(f"{path.relative_to(PACK_ROOT).as_posix()}: {shot.width}x{shot.height}, {path.stat().st_size // 1000} kB")


def shoot(page: Page, boxes: list[browser.Box], width: int, path: Path, margin: int = 20) -> None:
    """Photograph the part of the page in which some nodes stand."""
    view = page.evaluate(
        """() => {
            const { ds, canvas } = app.canvas
            const { left, top } = canvas.getBoundingClientRect()
            return [ds.scale, left + ds.offset[0] * ds.scale, top + ds.offset[1] * ds.scale]
        }"""
    )
    scale, x, y = view
    edges = [
        scale * (min(box.left for box in boxes) - margin) + x,
        scale * (min(box.top for box in boxes) - margin) + y,
        scale * (max(box.right for box in boxes) + margin) + x,
        scale * (max(box.bottom for box in boxes) + margin) + y,
    ]
    left, top = max(0.0, edges[0]), max(0.0, edges[1])
    right, bottom = min(float(WINDOW["width"]), edges[2]), min(float(WINDOW["height"]), edges[3])
    clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    picture(page.screenshot(clip=clip), width, path)


def offer_files(server: ComfyUIServer) -> None:
    """An empty file for every model and picture that a workflow names: the front end marks what is missing in red."""
    for path in WORKFLOWS.glob("*.json"):
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            for model in node.get("properties", {}).get("models", ()):
                file = server.base / "models" / model["directory"] / model["name"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
    (server.base / "input").mkdir(exist_ok=True)
    Image.new("RGB", (320, 180), (60, 90, 110)).save(server.base / "input" / "example.png")


def look(page: Page, nodes_2: bool, path: Path) -> tuple[list[str], list[browser.Box]]:
    """Open a workflow; returns what is wrong with it, and where its nodes stand."""
    workflow: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    missing = browser.load(page, workflow)
    boxes = browser.boxes(page, nodes_2)
    problems = [f"the host has no {kind}" for kind in missing]
    return problems + [f"{one} overlaps {other}" for one, other in browser.overlapping(boxes)], boxes


def run_demo(page: Page) -> list[str]:
    """Run the workflow in view and photograph it and its nodes; returns what is wrong."""
    ended = browser.run(page)
    page.wait_for_timeout(LATER)
    browser.fit(page)
    page.wait_for_timeout(LATER)
    boxes = browser.boxes(page, False)
    shoot(page, boxes, WIDTH, WORKFLOWS / f"{DEMO}.jpg")
    for kind in ("SparsityScheduler", "ApplyDraftAttention", "DraftAttentionCompare", "DraftAttentionReport"):
        shoot_node(page, kind)
    problems = [] if ended == "execution_success" else [f"the run ended with {ended}"]
    return problems + [f"after the run {one} overlaps {other}" for one, other in browser.overlapping(boxes)]


def shoot_node(page: Page, kind: str) -> None:
    """Photograph a node for its help page, without what the doctor says of where this machine's Python lies."""
    page.evaluate(
        """() => document.querySelectorAll('.draftattention-text pre').forEach((one) => {
            one.textContent = one.textContent.replace(/(Python .* at )\\S+/, "$1.../python")
        })"""
    )
    index = page.evaluate("(kind) => app.graph.nodes.findIndex((node) => node.type === kind)", kind)
    shoot(page, [browser.boxes(page, False)[index]], HELP_WIDTH, HELP / f"{kind}.jpg", margin=12)


def photograph(opened: Browser, server: ComfyUIServer, wanted: str) -> list[str]:
    """Everything whose name contains `wanted`; returns what is wrong."""
    problems: list[str] = []
    offer_files(server)
    pages = {}
    for name, nodes_2 in RENDERERS.items():
        pages[name] = opened.new_page(viewport=WINDOW)
        browser.open_page(pages[name], server, nodes_2)
        for path in sorted(WORKFLOWS.glob("*.json")):
            if wanted not in path.stem:
                continue
            found, boxes = look(pages[name], nodes_2, path)
            if not nodes_2 and path.stem == DEMO:
                found += run_demo(pages[name])
            elif not nodes_2:
                shoot(pages[name], boxes, WIDTH, path.with_suffix(".jpg"))
            problems += [f"{path.stem}, {name}: {problem}" for problem in found]
        if nodes_2:
            pages[name].close()
    if wanted in "help_" or wanted.startswith("help_"):
        page = pages["classic"]
        browser.open_page(page, server, False)
        problems += help_pictures(page, server, wanted)
    return problems


def help_pictures(page: Page, server: ComfyUIServer, wanted: str) -> list[str]:
    """Photographs of the nodes that the demo does not have."""
    problems = []
    for graph in help_graph(server.get("/object_info")):
        if wanted not in graph.name:
            continue
        browser.load(page, graph.to_json())
        ended = browser.run(page)
        page.wait_for_timeout(LATER)
        browser.fit(page)
        page.wait_for_timeout(LATER)
        if ended != "execution_success":
            problems.append(f"{graph.name}: the run ended with {ended}")
        for kind in SHOWN[graph.name]:
            shoot_node(page, kind)
        # The next graph's choices include what this run has written.
        browser.open_page(page, server, False)
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the workflows in a browser and photograph them.")
    parser.add_argument("--only", default="", help="part of a workflow's name; help_ for the nodes' pages")
    wanted = parser.parse_args().only
    from playwright.sync_api import sync_playwright

    install = find_comfyui()
    chromium = os.environ.get("CHROMIUM_PATH") or shutil.which("chromium") or shutil.which("google-chrome")
    if install is None or chromium is None:
        print(NOT_FOUND if install is None else "no Chromium found: set CHROMIUM_PATH to its executable")
        return 1
    with ComfyUIServer(install, [CHECKPOINT]) as server, sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        problems = photograph(opened, server, wanted)
        opened.close()
    print("\n".join(problems) or "Nothing is missing, nothing overlaps.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
