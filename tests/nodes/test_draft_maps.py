"""What the browser is told of a run's draft maps, and the files that it fetches."""

from __future__ import annotations

import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch


@pytest.fixture
def room(part, monkeypatch) -> SimpleNamespace:
    """The module with files in a dictionary, and a run of two steps whose maps are known."""
    told, maps = part("nodes.browser.draft_maps"), part("draftattn_core.run.coarse_maps")
    files: dict[str, bytes] = {}

    def keep(data: bytes, suffix: str) -> dict[str, str]:
        name = f"{len(files)}.{suffix}"
        files[name] = data
        return {"filename": name}

    monkeypatch.setattr(told, "keep_for_browser", keep)
    layout = part("draftattn_core.geometry.layout").Layout(
        part("draftattn_core.geometry.grid").TokenGrid(2, 3, 5), extra_before=4, q_block=8, k_block=4
    )
    position = part("draftattn_core.run.report").Position
    kept = maps.CoarseMaps()
    for step in (3, 1):
        draft = torch.randint(0, 256, (2, 4, 8), dtype=torch.uint8)
        here = position(step, 0.1, 7, 9)
        kept.kept[step, 7] = maps.CoarseMap(here, layout, torch.arange(4), 1, draft, 255 - draft)
    return SimpleNamespace(send=told.send_maps, files=files, kept=kept, layout=layout, part=part)


FRAMES = np.random.default_rng(0).integers(0, 256, (9, 6, 10, 3), np.uint8)


def test_a_run_without_sparse_calls_has_no_maps(room) -> None:
    assert room.send(room.part("draftattn_core.run.coarse_maps").CoarseMaps(), {}, FRAMES) == {"maps": []}
    assert not room.files


def test_maps_come_by_step_with_their_shape_and_bytes(room) -> None:
    told = room.send(room.kept, {}, FRAMES)
    assert told["grid"] == [2, 3, 5] and [one["step"] for one in told["maps"]] == [1, 3]
    for one in told["maps"]:
        assert (one["layer"], one["heads"], one["rows"], one["columns"]) == (7, 2, [0, 1, 2, 3], 8)
        data = np.frombuffer(zlib.decompress(room.files[one["file"]["filename"]]), np.uint8).reshape(2, 2, 4, 8)
        kept = room.kept.kept[one["step"], 7]
        assert np.array_equal(data[0], kept.draft.numpy()) and np.array_equal(data[1], kept.kept.numpy())


def test_every_token_is_told_its_blocks(room) -> None:
    told = room.send(room.kept, {}, FRAMES)
    query, key = np.frombuffer(zlib.decompress(room.files[told["blocks"]["filename"]]), "<u2").reshape(2, 30)
    expected = room.part("draftattn_core.run.capture").video_blocks(room.layout)
    assert query.tolist() == expected[0].tolist() and key.tolist() == expected[1].tolist()
    assert np.bincount(query).max() == 8 and np.bincount(key).max() == 4


def test_the_frames_below_are_as_many_as_the_latent_has(room) -> None:
    sheet = room.send(room.kept, {}, FRAMES)["sheet"]
    assert (sheet["frames"], sheet["width"], sheet["height"]) == (2, 10, 6)


def test_maps_are_written_once_and_only_the_frames_again(room) -> None:
    files: dict[str, object] = {}
    first = room.send(room.kept, files, FRAMES)
    count = len(room.files)
    second = room.send(room.kept, files, FRAMES)
    assert len(room.files) == count + 1 and second["maps"] == first["maps"] and second["sheet"] != first["sheet"]
