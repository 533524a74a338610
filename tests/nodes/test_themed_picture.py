"""The browser gets every picture for both themes, drawn once for each, with the size that the node makes room for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image


def test_both_themes_have_a_file_of_the_same_size(part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "folder_paths", SimpleNamespace(get_temp_directory=lambda: str(tmp_path)))
    looks, phrase = part("draftattn_core.views.charts.look"), part("draftattn_core.phrase")

    def draw(look) -> Image.Image:
        picture, pen = look.blank(300, 100)
        pen.rectangle((0, 0, 9, 9), fill=look.ink)
        pen.write((150, 50), phrase.Phrase("chart_layer", "layer {layer}", layer=3), size=12, anchor="mm")
        return picture

    module = part("nodes.display.themed_picture")
    ((told,),) = module.themed_picture(draw, Image.new("RGB", (30, 20))).values()
    assert (told["width"], told["height"]) == (300, 100)
    for theme, look in (("light", looks.LIGHT), ("dark", looks.DARK)):
        file = told[theme]
        assert (file["subfolder"], file["type"]) == ("", "temp")
        with Image.open(tmp_path / file["filename"]) as shown:
            assert shown.format == "PNG" and shown.size == (600, 200), "two pixels a unit"
            assert [shown.getpixel(place) for place in ((0, 0), (19, 19), (20, 20))] == [look.ink] * 2 + [look.paper]
    with Image.open(tmp_path / told["whole"]["filename"]) as shown:
        assert shown.size == (30, 20)
    (label,) = told["labels"]
    assert label["words"] == {"key": "chart_layer", "values": {"layer": 3}, "text": "layer 3"}
    assert (label["x"], label["y"], label["size"], label["anchor"]) == (0.5, 0.5, 12 / 300, "mm")
    assert (label["light"], label["dark"]) == ("#222831", "#e0e3e7")
