"""A workflow drawn as the browser shows it: boxes, widgets and links."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageDraw

from draftattention.draftattn_core.views.charts.canvas import Colour, font, text_size, wrapped
from tools.workflows.graph import NOTE, is_widget

BACK: Colour = (32, 34, 38)
BOX: Colour = (54, 57, 63)
HEAD: Colour = (44, 46, 51)
OURS: Colour = (38, 94, 92)
NOTE_BOX: Colour = (84, 72, 44)
FIELD: Colour = (34, 36, 40)
TEXT: Colour = (228, 230, 233)
DIM: Colour = (158, 162, 170)
LINK_COLOURS: dict[str, Colour] = {
    "MODEL": (178, 157, 219),
    "CLIP": (255, 213, 0),
    "VAE": (255, 110, 110),
    "CONDITIONING": (255, 169, 49),
    "LATENT": (255, 156, 249),
    "IMAGE": (100, 181, 246),
    "SPARSITY_SCHEDULE": (77, 208, 190),
    "DRAFT_ATTENTION_REPORT": (120, 220, 130),
    "DRAFT_ATTENTION_CAPTURE": (120, 220, 130),
}
OURS_PREFIXES = ("DraftAttention", "ApplyDraftAttention", "SparsityScheduler")
_MARGIN = 40


def graph_picture(workflow: dict[str, Any], info: dict[str, Any], width: int = 1600) -> Image.Image:
    """RGB picture of a workflow in the browser's form, `width` pixels wide.

    Args:
        workflow: what the browser saves.
        info: the host's /object_info, for the names of the widgets.
    """
    nodes = {node["id"]: node for node in workflow["nodes"]}
    right = max(node["pos"][0] + node["size"][0] for node in nodes.values()) + _MARGIN
    bottom = max(node["pos"][1] + node["size"][1] for node in nodes.values()) + _MARGIN
    left = min(node["pos"][0] for node in nodes.values()) - _MARGIN
    top = min(node["pos"][1] for node in nodes.values()) - _MARGIN - 30
    picture = Image.new("RGB", (int(right - left), int(bottom - top)), BACK)
    pen = ImageDraw.Draw(picture)
    for link in workflow["links"]:
        _link(pen, nodes, link, (left, top))
    for node in nodes.values():
        _node(pen, node, info, (node["pos"][0] - left, node["pos"][1] - top))
    height = round(picture.height * width / picture.width)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _slot(node: dict[str, Any], slot: int, origin: tuple[float, float], output: bool) -> tuple[float, float]:
    x = node["pos"][0] - origin[0] + (node["size"][0] if output else 0)
    return x, node["pos"][1] - origin[1] + 16 + 20 * slot


def _link(
    pen: ImageDraw.ImageDraw, nodes: dict[int, dict[str, Any]], link: list[Any], origin: tuple[float, float]
) -> None:
    _, source, out_slot, target, in_slot, kind = link
    (x0, y0), (x1, y1) = _slot(nodes[source], out_slot, origin, True), _slot(nodes[target], in_slot, origin, False)
    bend = max(60.0, abs(x1 - x0) / 2)
    points = []
    for index in range(41):
        t = index / 40
        weights = ((1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3)
        points.append(
            (
                sum(w * x for w, x in zip(weights, (x0, x0 + bend, x1 - bend, x1), strict=True)),
                sum(w * y for w, y in zip(weights, (y0, y0, y1, y1), strict=True)),
            )
        )
    pen.line(points, fill=LINK_COLOURS.get(kind, DIM), width=3, joint="curve")


def _node(pen: ImageDraw.ImageDraw, node: dict[str, Any], info: dict[str, Any], corner: tuple[float, float]) -> None:
    (x, y), (w, h) = corner, node["size"]
    note = node["type"] == NOTE
    ours = node["type"].startswith(OURS_PREFIXES)
    pen.rounded_rectangle((x, y - 30, x + w, y + h), 8, fill=NOTE_BOX if note else BOX, outline=OURS if ours else HEAD)
    pen.rounded_rectangle((x, y - 30, x + w, y), 8, fill=OURS if ours else NOTE_BOX if note else HEAD)
    described = info.get(node["type"], {})
    title = node.get("title") or described.get("display_name") or node["type"]
    pen.text((x + 12, y - 15), _cut(title, w - 24, 16), fill=TEXT, font=font(16), anchor="lm")
    if note:
        text = node["widgets_values"][0].replace("**", "").replace("# ", "")
        lines = [line for paragraph in text.split("\n") for line in wrapped(_plain(paragraph), int(w) - 24, 13)]
        for index, line in enumerate(lines[: int((h - 16) // 17)]):
            pen.text((x + 12, y + 10 + 17 * index), _cut(line, w - 20, 13), fill=TEXT, font=font(13))
        return
    for slot, item in enumerate(node["inputs"]):
        _dot(pen, (x, y + 16 + 20 * slot), item["type"])
        pen.text((x + 12, y + 16 + 20 * slot), item["name"], fill=DIM, font=font(13), anchor="lm")
    for slot, item in enumerate(node["outputs"]):
        _dot(pen, (x + w, y + 16 + 20 * slot), item["type"])
        pen.text((x + w - 12, y + 16 + 20 * slot), item["name"], fill=DIM, font=font(13), anchor="rm")
    at = y + 14 + 20 * max(len(node["inputs"]), len(node["outputs"]))
    for name, value in _widgets(node, described):
        paragraph = value if isinstance(value, str) and len(value) > 60 else None
        tall = 24 if paragraph is None else 118
        if at + tall > y + h + 2:
            break
        pen.rounded_rectangle((x + 10, at, x + w - 10, at + tall - 4), 6, fill=FIELD)
        if paragraph is not None:
            for index, part in enumerate(wrapped(paragraph, int(w) - 36, 12)[:6]):
                pen.text((x + 18, at + 8 + 17 * index), part, fill=TEXT, font=font(12))
        else:
            pen.text((x + 18, at + 10), name, fill=DIM, font=font(12), anchor="lm")
            room = w - 44 - text_size(name, 12)[0]
            pen.text((x + w - 18, at + 10), _cut(_shown(value), room, 12), fill=TEXT, font=font(12), anchor="rm")
        at += tall + 2


def _widgets(node: dict[str, Any], described: dict[str, Any]) -> list[tuple[str, Any]]:
    names: list[str] = []
    for part in ("required", "optional"):
        for name in described.get("input_order", {}).get(part, ()):
            spec = described["input"][part][name]
            if is_widget(spec):
                options = spec[1] if len(spec) > 1 else {}
                names.append(name)
                names += ["after generating"] if options.get("control_after_generate") else []
                names += [""] if options.get("image_upload") else []
    return [(name, value) for name, value in zip(names, node["widgets_values"], strict=False) if name]


def _dot(pen: ImageDraw.ImageDraw, place: tuple[float, float], kind: str) -> None:
    x, y = place
    pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=LINK_COLOURS.get(str(kind).split(",")[0], DIM))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(text: str) -> str:
    """Markdown links as their text."""
    while "](" in text:
        before, _, rest = text.partition("](")
        text = before.replace("[", "", 1) + rest.partition(")")[2]
    return text.replace("`", "")


def _cut(text: str, width: float, size: int) -> str:
    if text_size(text, size)[0] <= width:
        return text
    while text and text_size(text + "...", size)[0] > width:
        text = text[:-1]
    return text + "..."
