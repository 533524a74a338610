"""Tuning tables: data, checked and bounded when it is read, for one architecture and one Triton."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from draftattention.kernels import configs, tuning
from draftattention.kernels.configs import ATTEND, AttendConfig, attend_config, tuned_attend
from draftattention.kernels.tuning import ALLOWED, MOST_BYTES, TuningTable, parse, read_table, write_table

FOUND = AttendConfig(64, 64, 32, 4, 5, 1)
TABLE = TuningTable("sm_90", "NVIDIA H200", "3.6.0", "Wan 14B 720p, density 0.2", {128: asdict(FOUND)}, {128: 1.2})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(configs, "read_table", lambda architecture: read_table(architecture, tmp_path))
    monkeypatch.setattr(configs, "triton_version", lambda: "3.6.1")
    tuned_attend.cache_clear()
    yield tmp_path
    tuned_attend.cache_clear()


def test_a_table_that_was_written_is_read_again(tmp_path: Path) -> None:
    assert write_table(TABLE, tmp_path) == tmp_path / "sm_90.json"
    assert read_table("sm_90", tmp_path) == TABLE
    assert read_table("sm_120", tmp_path) is None


def test_configurations_come_from_the_table_where_it_has_them(folder: Path) -> None:
    write_table(TABLE, folder)
    assert attend_config("sm_90", 128, 1) == FOUND
    assert attend_config("sm_90", 128, 2) == replace(FOUND, block_g=16)
    assert attend_config("sm_90", 64, 1) == ATTEND["sm_90", 64]
    # A sibling shares the fixed row, not what was measured on another device.
    write_table(replace(TABLE, architecture="sm_86"), folder)
    assert attend_config("sm_87", 128, 1) == ATTEND["sm_86", 128]


def test_a_table_of_another_triton_is_left_alone(folder: Path) -> None:
    write_table(replace(TABLE, triton="3.7.1"), folder)
    assert attend_config("sm_90", 128, 1) == ATTEND["sm_90", 128]


def test_every_shipped_row_is_within_the_bounds_of_a_table() -> None:
    for (architecture, dim), row in ATTEND.items():
        TuningTable(architecture, "any", "3.6.0", "none", {dim: asdict(row)})


def changed(**changes: Any) -> str:
    return json.dumps(json.loads(TABLE.to_json()) | changes)


def numbers(**changes: Any) -> str:
    return changed(attend={"128": asdict(FOUND) | changes})


BAD = {
    "no JSON": "{",
    "nested too deeply": "[" * 5000,
    "a list": "[]",
    "another format": changed(format=2),
    "a format that is true": changed(format=True),
    "a key too many": changed(run="rm"),
    "a long text": changed(device="x" * 1000),
    "no text": changed(device=7),
    "another head size": changed(attend={"96": asdict(FOUND)}, gain={}),
    "a head size twice as text": changed(attend={"0128": asdict(FOUND)}, gain={}),
    "a list for numbers": changed(attend={"128": [1, 2]}),
    "a number short": changed(attend={"128": {"block_m": 128}}),
    "a number too many": numbers(more=1),
    "a tile that is no power of two": numbers(block_m=96),
    "a huge tile": numbers(block_n=1 << 20),
    "a pooled tile wider than any that is compiled": numbers(block_g=128),
    "a fraction": numbers(warps=8.0),
    "true for one": numbers(tail_stages=True),
    "no stage": numbers(stages=0),
    "a gain for nothing": changed(gain={"64": 1.1}),
    "a gain that is not finite": changed(gain={"128": float("nan")}),
    "of another architecture": changed(architecture="sm_80"),
    "too large": TABLE.to_json() + " " * MOST_BYTES,
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_a_table_with_anything_amiss_counts_as_none(text: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "sm_90.json").write_text(text, encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert attend_config("sm_90", 128, 1) == ATTEND["sm_90", 128]
        attend_config("sm_90", 128, 1)
    assert len(caplog.records) == 1 and "sm_90.json is not used" in caplog.text


def test_bounds_have_a_value_for_every_number_of_a_configuration() -> None:
    assert set(ALLOWED) == set(asdict(FOUND))
    with pytest.raises(ValueError, match="warps must be one of"):
        parse(numbers(warps=3))
    assert tuning.same_triton("3.6.0", "3.6.1+git") and not tuning.same_triton("3.6.0", "3.7.0")
