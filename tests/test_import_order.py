"""Imports run one way: what stands lower in the house knows nothing of what stands above it, and nothing goes round."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tools.comfyui.path import PACK_ROOT

# Each room with those it may import beside itself. A module belongs to the longest name that it begins with.
TYPES = ("kernels.types",)
METHOD = ("draftattn_core.geometry", "draftattn_core.phrase", *TYPES)
BACKENDS = ("draftattn_core.method", *METHOD)
ATTENTION = ("draftattn_core.backends", *BACKENDS)
RUN = ("draftattn_core.attention", *ATTENTION)
ABOVE_RUN = ("draftattn_core.run", *RUN)
ROOMS: Mapping[str, tuple[str, ...]] = {
    "kernels.types": (),
    "kernels": TYPES,
    "draftattn_core.phrase": (),
    "draftattn_core.geometry": TYPES,
    "draftattn_core.method": METHOD,
    "draftattn_core.backends": ("kernels", *BACKENDS),
    "draftattn_core.attention": ATTENTION,
    "draftattn_core.run": RUN,
    "draftattn_core.hosts": ABOVE_RUN,
    "draftattn_core.views": ("draftattn_core.run", *BACKENDS),
    "draftattn_core.doctor": RUN,
    "draftattn_core": ABOVE_RUN,
    "nodes": ("draftattn_core.views", "draftattn_core.doctor", *ABOVE_RUN),
    "": ("draftattn_core", "draftattn_core.hosts", "nodes"),
}
PRODUCT = ("__init__.py", "draftattn_core", "kernels", "nodes")
# Relative imports alone lead from the product to its own files, whatever the name of its folder; the rest of the
# repository is not where the product runs.
OUTSIDE = {"benchmarks", "demo", "draftattention", "draftattn_core", "kernels", "nodes", "run", "tests", "tools"}


def read_product(root: Path) -> dict[str, str]:
    """Text of the product's files, by path relative to the root."""
    paths = [
        path for part in PRODUCT for path in ([root / part] if part.endswith(".py") else (root / part).rglob("*.py"))
    ]
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def module_name(file: str) -> str:
    """Relative to the package, which itself is the empty name."""
    return file.removesuffix(".py").removesuffix("__init__").strip("/").replace("/", ".")


@cache
def imports(file: str, text: str) -> tuple[tuple[str, str], ...]:
    """Pairs (module, name imported from it), those for type checkers too; what lies outside the package has a `!`."""

    def found() -> Iterator[tuple[str, str]]:
        package = file.split("/")[:-1]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                yield from ((f"!{alias.name}", "") for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield f"!{node.module}", ""
            elif isinstance(node, ast.ImportFrom):
                base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
                yield from ((".".join(filter(None, base)), alias.name) for alias in node.names)

    return tuple(found())


def room(module: str) -> str:
    return max((name for name in ROOMS if not name or f"{module}.".startswith(f"{name}.")), key=len)


def breaches(product: Mapping[str, str]) -> list[str]:
    """Every import that the table does not allow, and a circle of imports if there is one."""
    known = {module_name(file) for file in product}
    edges: dict[str, set[str]] = {name: set() for name in known}
    found = []
    for file, text in sorted(product.items()):
        name = module_name(file)
        for module, part in imports(file, text):
            whole = f"{module}.{part}".strip(".")
            target = whole if whole in known else module
            if module.startswith("!"):
                allowed = module[1:].partition(".")[0] not in OUTSIDE
            else:
                allowed = room(target) in (room(name), *ROOMS[room(name)])
                edges[name] |= {target} - {name}
            if not allowed:
                found.append(f"{file} imports {target.strip('!')}")
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        found.append("a circle: " + " <- ".join(error.args[1]))
    return found


def test_imports_run_one_way() -> None:
    assert breaches(read_product(PACK_ROOT)) == []


@pytest.mark.parametrize(
    ("file", "line", "breach"),
    [
        ("draftattn_core/geometry/order.py", "from ..method import draft", "imports draftattn_core.method.draft"),
        (
            "draftattn_core/backends/request.py",
            "from ..run.report import Position",
            "imports draftattn_core.run.report",
        ),
        ("draftattn_core/method/draft.py", "def f(): from ...kernels import select", "imports kernels.select"),
        ("draftattn_core/run/report.py", "from ...nodes import apply", "imports nodes.apply"),
        ("draftattn_core/views/metrics.py", "from ..attention import attend", "imports draftattn_core.attention"),
        ("kernels/configs.py", "from ..draftattn_core.geometry import grid", "imports draftattn_core.geometry.grid"),
        ("nodes/compare.py", "import demo.data", "imports demo.data"),
        ("nodes/compare.py", "from tools.comfyui import path", "imports tools.comfyui"),
        ("nodes/compare.py", "from draftattention import attend", "imports draftattention"),
        ("draftattn_core/geometry/grid.py", "if TYPE_CHECKING: from .order import Tile", "a circle: "),
    ],
)
def test_an_import_that_goes_up_out_or_round_is_found(file: str, line: str, breach: str) -> None:
    product = read_product(PACK_ROOT)
    product[file] += f"\n{line}\n"
    expected = breach if breach.startswith("a circle") else f"{file} {breach}"
    assert [entry for entry in breaches(product) if entry.startswith(expected)]
