"""Is a workflow valid for a host? Its nodes, widgets and links against the host's /object_info, and its API form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tools.workflows.graph import choices_of, fits, is_widget

# Nodes that exist in the browser only.
BROWSER_ONLY = {"MarkdownNote", "Note"}
# Widget values of these inputs are names of files, which a machine may or may not have.
FILE_SUFFIXES = (".safetensors", ".png", ".jpg", ".gguf")


def problems(workflow: dict[str, Any], info: dict[str, Any]) -> list[str]:
    """What is wrong with a workflow in the browser's form; empty if nothing is.

    Args:
        workflow: what the browser saves.
        info: the host's /object_info.
    """
    nodes = {node["id"]: node for node in workflow["nodes"]}
    found = []
    if len(nodes) != len(workflow["nodes"]):
        found.append("two nodes share an id")
    if workflow["last_node_id"] < max(nodes, default=0):
        found.append("last_node_id is smaller than a node's id")
    if workflow["last_link_id"] < max((link[0] for link in workflow["links"]), default=0):
        found.append("last_link_id is smaller than a link's id")
    known = {ident: node for ident, node in nodes.items() if node["type"] in info}
    for node in nodes.values():
        if node["type"] in BROWSER_ONLY:
            continue
        name = f"{node['type']} #{node['id']}"
        if node["id"] not in known:
            found.append(f"{name}: the host has no such node")
            continue
        found += [f"{name}: {text}" for text in (*_inputs(node, info), *_widgets(node, info), *_outputs(node, info))]
    found += _links(workflow, nodes)
    return found


def _specs(kind: str, info: dict[str, Any]) -> Iterator[tuple[str, list[Any], bool]]:
    """(name, specification, whether required) of a node's inputs in the browser's order."""
    description = info[kind]
    for part in ("required", "optional"):
        for name in description["input_order"].get(part, ()):
            yield name, description["input"][part][name], part == "required"


def _inputs(node: dict[str, Any], info: dict[str, Any]) -> Iterator[str]:
    sockets = {item["name"]: item for item in node["inputs"]}
    described = {name: (spec, required) for name, spec, required in _specs(node["type"], info)}
    for name, item in sockets.items():
        if name not in described:
            yield f"the host knows no input {name!r}"
        elif item["link"] is not None and not fits(item["type"], str(described[name][0][0])):
            yield f"input {name!r} is {item['type']} here and {described[name][0][0]} on the host"
    for name, (spec, required) in described.items():
        if required and not is_widget(spec) and (name not in sockets or sockets[name]["link"] is None):
            yield f"the required input {name!r} is not connected"


def _widgets(node: dict[str, Any], info: dict[str, Any]) -> Iterator[str]:
    values = list(node.get("widgets_values", ()))
    for name, spec, value in _named_widgets(node["type"], values, info):
        options = spec[1] if len(spec) > 1 else {}
        choices = choices_of(spec)
        if choices and value not in choices and not str(value).endswith(FILE_SUFFIXES):
            yield f"{name!r} is {value!r}, which is not among the host's choices"
        if spec[0] in ("INT", "FLOAT"):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                yield f"{name!r} is {value!r}, not a number"
            elif not options.get("min", value) <= value <= options.get("max", value):
                yield f"{name!r} is {value}, outside {options.get('min')} to {options.get('max')}"
        if (spec[0] == "BOOLEAN") != isinstance(value, bool):
            yield f"{name!r} is {value!r}: the widget values are out of order"
    wanted = sum(1 + _extras(spec) for _, spec, _ in _specs(node["type"], info) if is_widget(spec))
    if len(values) > wanted:
        yield f"{len(values)} widget values for {wanted} widgets"
    for name, spec in list(_missing(node["type"], len(values), info)):
        if "default" not in (spec[1] if len(spec) > 1 else {}):
            yield f"no value for {name!r}, which has no default"


def _extras(spec: list[Any]) -> int:
    """Values the browser saves behind a widget's own: what to do with a seed, the upload button."""
    options = spec[1] if len(spec) > 1 else {}
    return int(bool(options.get("control_after_generate"))) + int(bool(options.get("image_upload")))


def _named_widgets(kind: str, values: list[Any], info: dict[str, Any]) -> Iterator[tuple[str, list[Any], Any]]:
    place = 0
    for name, spec, _ in _specs(kind, info):
        if is_widget(spec) and place < len(values):
            yield name, spec, values[place]
            place += 1 + _extras(spec)


def _missing(kind: str, count: int, info: dict[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    place = 0
    for name, spec, required in _specs(kind, info):
        if is_widget(spec):
            if place >= count and required:
                yield name, spec
            place += 1 + _extras(spec)


def _outputs(node: dict[str, Any], info: dict[str, Any]) -> Iterator[str]:
    described = info[node["type"]]["output"]
    for slot, item in enumerate(node["outputs"]):
        if not item["links"]:
            continue
        if slot >= len(described):
            yield f"output {slot} ({item['name']}) does not exist on the host"
        elif not fits(str(described[slot]), item["type"]):
            yield f"output {item['name']!r} is {item['type']} here and {described[slot]} on the host"


def _links(workflow: dict[str, Any], nodes: dict[int, dict[str, Any]]) -> Iterator[str]:
    ends = set()
    for number, source, out_slot, target, in_slot, kind in workflow["links"]:
        try:
            output, entry = nodes[source]["outputs"][out_slot], nodes[target]["inputs"][in_slot]
        except (KeyError, IndexError):
            yield f"link {number} leads to a slot that does not exist"
            continue
        ends.add((target, in_slot))
        if number not in (output["links"] or ()):
            yield f"link {number} is missing at its output"
        if entry["link"] != number:
            yield f"link {number} is missing at its input"
        if not (fits(output["type"], entry["type"]) and fits(kind, entry["type"])):
            yield f"link {number} takes {output['type']} to an input of {entry['type']}"
    for node in nodes.values():
        for slot, entry in enumerate(node["inputs"]):
            if entry["link"] is not None and (node["id"], slot) not in ends:
                yield f"{node['type']} #{node['id']}: input {entry['name']!r} names a link that does not exist"


def to_api(workflow: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """The workflow in the form POST /prompt takes."""
    links = {link[0]: link for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in BROWSER_ONLY:
            continue
        inputs: dict[str, Any] = {
            name: value for name, _, value in _named_widgets(node["type"], list(node["widgets_values"]), info)
        }
        for name, spec in _missing(node["type"], len(node["widgets_values"]), info):
            inputs[name] = spec[1]["default"]
        for entry in node["inputs"]:
            if entry["link"] is not None:
                _, source, slot, *_ = links[entry["link"]]
                inputs[entry["name"]] = [str(source), slot]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def files(workflow: dict[str, Any]) -> list[tuple[str, str]]:
    """(folder under models, name) of every model file the workflow's nodes name with a link."""
    named = [model for node in workflow["nodes"] for model in node.get("properties", {}).get("models", ())]
    return sorted({(model["directory"], model["name"]) for model in named})
