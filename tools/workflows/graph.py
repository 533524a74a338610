"""A ComfyUI workflow as a Python object: nodes in columns, links by name, written in the form the browser saves.

Slot order, types and widgets come from a host's /object_info, so a workflow cannot name what the host does not have.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3"}
NOTE = "MarkdownNote"
_GAP = 40
_NAMESPACE = uuid.UUID("5d0c9f60-2a86-4f7a-9a6b-6f2f2a8f1d00")


@dataclass(frozen=True)
class Output:
    """One output of a node."""

    node: int
    slot: int
    kind: str


@dataclass
class Node:
    """A node of the graph; `out(name)` is what others link to."""

    id: int
    record: dict[str, Any]

    def out(self, name: str | int = 0) -> Output:
        """Output by slot or by name (display name or type)."""
        outputs = self.record["outputs"]
        slot = name if isinstance(name, int) else [item["name"] for item in outputs].index(name)
        return Output(self.id, slot, outputs[slot]["type"])


@dataclass
class Graph:
    """A workflow in the making.

    Attributes:
        name: file name without suffix; also the seed of its id.
        info: the host's /object_info.
    """

    name: str
    info: dict[str, Any]
    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)
    _columns: dict[int, int] = field(default_factory=dict)
    _widths: dict[int, int] = field(default_factory=dict)

    def add(
        self,
        kind: str,
        column: int,
        *,
        title: str | None = None,
        models: list[dict[str, str]] | None = None,
        box: tuple[int, int | None] = (320, None),
        room: int = 0,
        **values: Any,
    ) -> Node:
        """Add a node at the end of a column; `values` are links (`Output`) or widget values by input name.

        `box` is its width and height in pixels, None for what its widgets need; `room` is what is left free below it,
        for what it shows after a run.

        Raises:
            KeyError: if the host has no such node or input.
        """
        description = self.info[kind]
        ordered = [
            (name, description["input"][part][name], part == "optional")
            for part in ("required", "optional")
            for name in description["input_order"].get(part, ())
        ]
        unknown = set(values) - {name for name, _, _ in ordered}
        if unknown:
            raise KeyError(f"{kind} has no input {', '.join(sorted(unknown))}")
        ident = len(self.nodes) + 1
        sockets: list[dict[str, Any]] = []
        widgets: list[Any] = []
        for name, spec, optional in ordered:
            if is_widget(spec):
                widgets += self._widget(kind, name, spec, values)
                continue
            socket: dict[str, Any] = {"name": name, "type": spec[0], "link": None}
            if optional:
                socket["shape"] = 7
            if name in values:
                socket["link"] = self._link(values[name], ident, len(sockets), str(spec[0]))
            sockets.append(socket)
        outputs = [
            {"name": name, "type": output, "links": []}
            for name, output in zip(description["output_name"], description["output"], strict=True)
        ]
        tall = box[1] or _height(len(sockets), len(outputs), ordered)
        properties: dict[str, Any] = {"Node name for S&R": kind}
        if models:
            properties["models"] = models
        record = self._place(ident, kind, column, (box[0], tall), title, room)
        record.update(inputs=sockets, outputs=outputs, properties=properties, widgets_values=widgets)
        return Node(ident, record)

    def note(self, column: int, text: str, *, title: str, width: int = 380, height: int = 420) -> None:
        record = self._place(len(self.nodes) + 1, NOTE, column, (width, height), title)
        record.update(inputs=[], outputs=[], properties={}, widgets_values=[text], color="#432", bgcolor="#653")

    def to_json(self) -> dict[str, Any]:
        """The workflow as the browser saves it."""
        left = 20
        starts = {}
        for column in sorted(self._widths):
            starts[column] = left
            left += self._widths[column] + 60
        for order, record in enumerate(self.nodes):
            record["pos"][0] = starts[record["pos"][0]]
            record["order"] = order
        return {
            "id": str(uuid.uuid5(_NAMESPACE, self.name)),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": [],
            "config": {},
            "extra": {"ds": {"scale": 0.6, "offset": [0, 0]}},
            "version": 0.4,
        }

    def _place(
        self, ident: int, kind: str, column: int, size: tuple[int, int], title: str | None, room: int = 0
    ) -> dict[str, Any]:
        y = self._columns.get(column, 60)
        self._columns[column] = y + size[1] + room + _GAP
        self._widths[column] = max(self._widths.get(column, 0), size[0])
        record: dict[str, Any] = {"id": ident, "type": kind, "pos": [column, y], "size": list(size)}
        record.update(flags={}, order=0, mode=0)
        if title:
            record["title"] = title
        self.nodes.append(record)
        return record

    def _link(self, source: Output, target: int, slot: int, kind: str) -> int:
        if not fits(source.kind, kind):
            raise ValueError(f"a link of {source.kind} does not fit an input of {kind}")
        number = len(self.links) + 1
        self.links.append([number, source.node, source.slot, target, slot, source.kind])
        self.nodes[source.node - 1]["outputs"][source.slot]["links"].append(number)
        return number

    def _widget(self, kind: str, name: str, spec: list[Any], values: dict[str, Any]) -> list[Any]:
        options = spec[1] if len(spec) > 1 else {}
        if name in values:
            value = values[name]
        elif "default" in options:
            value = options["default"]
        else:
            choices = choices_of(spec)
            if not choices:
                raise KeyError(f"{kind}.{name} has no default: give a value")
            value = choices[0]
        extra: list[Any] = []
        if options.get("control_after_generate"):
            extra.append("fixed")
        if options.get("image_upload"):
            extra.append("image")
        return [value, *extra]


def is_widget(spec: list[Any]) -> bool:
    """Whether an input of /object_info is drawn as a widget."""
    forced = len(spec) > 1 and bool(spec[1].get("forceInput"))
    return not forced and (isinstance(spec[0], list) or spec[0] in WIDGETS)


def choices_of(spec: list[Any]) -> list[Any]:
    """The values of a combo; empty for other widgets and for combos without values."""
    if isinstance(spec[0], list):
        return list(spec[0])
    options = spec[1].get("options", []) if len(spec) > 1 and spec[0] in ("COMBO", "COMFY_DYNAMICCOMBO_V3") else []
    return [option["key"] if isinstance(option, dict) else option for option in options]


def fits(source: str, target: str) -> bool:
    """Whether an output type may go into an input type; inputs may list several, "*" takes everything."""
    wanted = set(str(target).split(","))
    return "*" in wanted or source == "*" or bool(set(source.split(",")) & wanted)


def _height(sockets: int, outputs: int, inputs: list[tuple[str, list[Any], bool]]) -> int:
    widgets = [spec for _, spec, _ in inputs if is_widget(spec)]
    tall = sum(bool(len(spec) > 1 and spec[1].get("multiline")) for spec in widgets)
    double = sum(bool(len(spec) > 1 and spec[1].get("control_after_generate")) for spec in widgets)
    return 34 + 20 * max(sockets, outputs) + 28 * (len(widgets) + double) + 110 * tall
