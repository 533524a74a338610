"""Help pages: one per node and language, named as the front end asks for them, each with a picture of its node."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tools.comfyui.path import PACK_ROOT

DOCS = PACK_ROOT / "web" / "docs"
PICTURES = DOCS / "pictures"
MOST_BYTES = 120_000
NODES = sorted(path.stem for path in DOCS.glob("*.md"))
# The English page, `<node>.md`, is what the front end falls back to; `<node>/<language>.md` comes first.
PAGES = sorted(path for path in DOCS.glob("*/*.md"))
LANGUAGES = sorted({path.stem for path in PAGES})


def pictures(text: str) -> list[str]:
    return re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_there_are_pages_for_every_node_in_every_language_that_has_any() -> None:
    assert "zh" in LANGUAGES and len(NODES) == 10
    assert {(path.parent.name, path.stem) for path in PAGES} == {(node, lang) for node in NODES for lang in LANGUAGES}


@pytest.mark.parametrize("page", [*(DOCS / f"{node}.md" for node in NODES), *PAGES], ids=lambda page: str(page)[-40:])
def test_a_page_shows_its_node_in_a_small_picture(page: Path) -> None:
    node = page.stem if page.parent == DOCS else page.parent.name
    # The front end resolves them against the folder of all pages, in every language.
    assert pictures(read(page)) == [f"pictures/{node}.jpg"]
    file = PICTURES / f"{node}.jpg"
    assert file.stat().st_size <= MOST_BYTES
    with Image.open(file) as picture:
        assert picture.width >= 240 and picture.height >= 100
        low, high = picture.convert("L").getextrema()
    assert high - low > 100, "something is drawn on it"


def test_no_picture_is_left_over() -> None:
    assert {path.stem for path in PICTURES.iterdir()} == set(NODES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_a_page_explains_the_same_inputs_with_the_same_figures_and_links(page: Path) -> None:
    english, other = read(DOCS / f"{page.parent.name}.md"), read(page)
    for pattern in (r"\*\*([a-z][a-z_]+)\*\*", r"\]\((https://[^)]+)\)", r"`([^`]+)`"):
        said = set(re.findall(pattern, other))
        missing = {
            one for one in set(re.findall(pattern, english)) - said if one in _inputs(page.parent.name) or "/" in one
        }
        assert not missing, missing
    names = json.loads(read(PACK_ROOT / "locales" / page.stem / "nodeDefs.json"))
    assert other.startswith(f"# {names[page.parent.name]['display_name']}\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_where_an_input_is_explained_the_label_of_its_widget_stands_beside_its_name(page: Path) -> None:
    labels = {name: label for name, label in labels_of(page.stem, page.parent.name).items() if label != name}
    explained = "\n".join(line for line in read(page).splitlines() if line.startswith("- "))
    found = re.findall(r"\*\*([a-z][a-z_]+)\*\*(?:[（(]([^）)]+)[）)])?", explained)
    assert [name for name, label in found if label != labels.get(name, "")] == []


def labels_of(language: str, node: str) -> dict[str, str]:
    """What a node's inputs are called on their widgets."""
    found = json.loads(read(PACK_ROOT / "locales" / language / "nodeDefs.json"))[node]
    return {name: said["name"] for name, said in found.get("inputs", {}).items()}


def _inputs(node: str) -> set[str]:
    """Names of a node's inputs."""
    found = json.loads(read(PACK_ROOT / "locales" / "zh" / "nodeDefs.json"))[node]
    return set(found.get("inputs", {}))
