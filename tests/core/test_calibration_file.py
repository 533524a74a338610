"""The file of a calibration: read whole or not at all, whoever made it."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from draftattention.draftattn_core.run.calibration import Calibration, named_tensors
from draftattention.draftattn_core.run.calibration_file import (
    SCHEMA,
    add_to_calibration,
    calibration_path,
    load_calibration,
    load_profile_with_masks,
    save_calibration,
)
from draftattention.draftattn_core.run.fingerprint import ProfileError
from draftattention.draftattn_core.run.profile_file import profile_names, save_profile
from tests.core.profiles import MODEL, a_profile
from tests.core.test_calibatt_recorder import recorded

KEY = "draftattention_calibration"


@pytest.fixture(scope="module")
def made() -> Calibration:
    return next(iter(recorded()))


def same(a: Calibration, b: Calibration) -> bool:
    facts = ("fingerprint", "layout", "target", "prompts", "runs")
    if any(getattr(a, name) != getattr(b, name) for name in facts) or list(a.experts) != list(b.experts):
        return False
    for name, votes in a.experts.items():
        other = b.experts[name]
        tensors, others = named_tensors(votes), named_tensors(other)
        if (votes.weights, votes.progress, set(tensors)) != (other.weights, other.progress, set(others)):
            return False
        if not all(torch.equal(tensor, others[key]) for key, tensor in tensors.items()):
            return False
    return True


def test_a_file_holds_the_whole_calibration(tmp_path: Path, made: Calibration) -> None:
    both = replace(made, experts={"high": made.experts["main"], "low": made.experts["main"]})
    path = tmp_path / "calibatt" / "wan.safetensors"
    assert save_calibration(both, path) == path.stat().st_size
    assert same(load_calibration(path), both) and os.listdir(path.parent) == ["wan.safetensors"]


def test_runs_are_added_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "wan.safetensors"
    one, two = recorded((0, 1))
    add_to_calibration(one, path)
    assert same(add_to_calibration(two, path), one.merged(two)) and same(load_calibration(path), one.merged(two))
    before = path.read_bytes()
    with pytest.raises(ProfileError):
        add_to_calibration(replace(one, fingerprint=replace(one.fingerprint, family="hunyuan")), path)
    assert path.read_bytes() == before


def test_a_profile_brings_the_masks_beside_it_and_is_listed_once(tmp_path: Path, made: Calibration) -> None:
    path = tmp_path / "wan.safetensors"
    save_profile(a_profile(), path)
    assert load_profile_with_masks(path).calibration is None
    mine = replace(made, fingerprint=made.fingerprint)
    save_calibration(mine, calibration_path(path))
    assert profile_names(tmp_path) == ["wan"]
    with pytest.raises(ProfileError, match="the masks beside wan.safetensors are for"):
        load_profile_with_masks(path)
    save_profile(replace(a_profile(), fingerprint=made.fingerprint, experts={}), path)
    found = load_profile_with_masks(path).calibration
    assert found is not None and same(found, mine) and made.fingerprint != MODEL


def raw(
    content: bytes,
    facts: Callable[[dict[str, Any]], object] = lambda facts: None,
    header: Callable[[dict[str, Any]], object] = lambda header: None,
) -> bytes:
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    known = json.loads(entries["__metadata__"][KEY])
    facts(known)
    entries["__metadata__"][KEY] = json.dumps(known)
    header(entries)
    changed = json.dumps(entries).encode()
    return len(changed).to_bytes(8, "little") + changed + content[8 + length :]


def moved(header: dict[str, Any]) -> None:
    header["0/votes/0"]["data_offsets"] = header["0/votes/1"]["data_offsets"]


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "a pickle": lambda _: pickle.dumps({"a": 1}),
    "cut short": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "header beyond the file": lambda _: (1 << 62).to_bytes(8, "little") + b"{}" * 100,
    "oversized header": lambda _: (2 << 20).to_bytes(8, "little") + b" " * (2 << 20),
    "a profile": lambda content: raw(content, header=lambda h: h.update(__metadata__={"draftattention_profile": "{}"})),
    "newer schema": lambda content: raw(content, lambda f: f.update(schema=SCHEMA + 1)),
    "a fact more": lambda content: raw(content, lambda f: f.update(code="import os")),
    "a fact less": lambda content: raw(content, lambda f: f.pop("runs")),
    "a grid beyond measure": lambda content: raw(content, lambda f: f["layout"].update(grid=[1 << 40, 1 << 40, 2])),
    "too many blocks": lambda content: raw(content, lambda f: f["layout"].update(grid=[100, 100, 100], k_block=1)),
    "a grid of fractions": lambda content: raw(content, lambda f: f["layout"].update(grid=[3.0, 5, 7])),
    "another grid": lambda content: raw(content, lambda f: f["layout"].update(grid=[3, 5, 17])),
    "an unknown order": lambda content: raw(content, lambda f: f["layout"].update(order="spiral")),
    "mass above one": lambda content: raw(content, lambda f: f["target"].update(start=1.5)),
    "no experts": lambda content: raw(content, lambda f: f.update(experts=[])),
    "an expert twice": lambda content: raw(content, lambda f: f.update(experts=f["experts"] * 2)),
    "an expert that is a path": lambda content: raw(content, lambda f: f["experts"][0].update(name="../up")),
    "noise levels that fall": lambda content: raw(content, lambda f: f["experts"][0].update(progress=[0.9, 0.5, 0.1])),
    "noise levels that are missing": lambda content: raw(content, lambda f: f["experts"][0].update(progress=[0.1])),
    "long weights": lambda content: raw(content, lambda f: f["experts"][0].update(weights="x" * 1000)),
    "prompts in words": lambda content: raw(content, lambda f: f.update(prompts=["a fox"])),
    "negative runs": lambda content: raw(content, lambda f: f.update(runs=-1)),
    "an unknown tensor": lambda content: raw(content, header=lambda h: h.update({"0/code": h["0/masks"]})),
    "a layer beyond the model": lambda content: raw(content, header=lambda h: h.update({"0/votes/9": h["0/votes/1"]})),
    "a layer without energies": lambda content: raw(content, header=lambda h: h.pop("0/energy/1")),
    "a huge shape": lambda content: raw(content, header=lambda h: h["0/votes/0"].update(shape=[3, 1 << 40, 1, 1])),
    "tables over the same bytes": lambda content: raw(content, header=moved),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_is_not_right_is_refused_in_one_sentence(tmp_path: Path, made: Calibration, kind: str) -> None:
    path = tmp_path / "wan.safetensors"
    save_calibration(made, path)
    path.write_bytes(HOSTILE[kind](path.read_bytes()))
    with pytest.raises(ProfileError) as refusal:
        load_calibration(path)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 300


def test_impossible_numbers_are_refused(made: Calibration) -> None:
    main = made.experts["main"]
    for change in (
        {"votes": {layer: votes + 1 for layer, votes in main.votes.items()}},
        {"similarity": torch.full_like(main.similarity, torch.nan)},
        {"masks": -main.masks},
        {"counted": -main.counted - 1},
        {"energy": {layer: energy * torch.inf for layer, energy in main.energy.items()}},
    ):
        with pytest.raises(ProfileError):
            replace(made, experts={"main": replace(main, **change)})  # type: ignore[arg-type]
