"""A profile's file: written whole or not at all, read whole or not at all, whoever made it."""

from __future__ import annotations

import json
import os
import pickle
import random
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from draftattention.draftattn_core.run import profile_file
from draftattention.draftattn_core.run.error_curve import CURVE_DENSITIES
from draftattention.draftattn_core.run.figures import Figures, figure_forms
from draftattention.draftattn_core.run.fingerprint import Fingerprint, ProfileError
from draftattention.draftattn_core.run.profile import Profile, prompt_key
from draftattention.draftattn_core.run.profile_file import (
    SCHEMA,
    add_to_file,
    load_profile,
    profile_names,
    profile_path,
    save_profile,
)
from tests.core.profiles import CONDITIONS, MEASURED, MODEL, a_profile, same


def test_a_file_holds_the_whole_profile_to_the_last_digit(tmp_path: Path) -> None:
    profile = a_profile(0, expert="high").merged(a_profile(1, "a bird", expert="low"))
    masks = {
        "displacements.0": torch.arange(12, dtype=torch.int16).view(4, 3),
        "empty": torch.zeros(0, dtype=torch.bool),
    }
    profile = replace(profile, masks=masks)
    path = tmp_path / "new folder" / "wan.safetensors"
    assert save_profile(profile, path) == path.stat().st_size
    assert same(load_profile(path), profile)
    first = path.read_bytes()
    save_profile(load_profile(path), path)
    assert path.read_bytes() == first and os.listdir(path.parent) == ["wan.safetensors"]


def test_a_header_whose_length_begins_like_a_pickle_is_none(tmp_path: Path) -> None:
    path, beginnings = tmp_path / "p.safetensors", set()
    for longer in range(64):
        profile = replace(a_profile(), experts={}, grids={"9" * (longer + 1): 1, "8" * (longer + 1): 1})
        save_profile(profile, path)
        beginnings.add(path.read_bytes()[:2])
        assert load_profile(path).grids == profile.grids
    assert b"\x80\x02" in beginnings


@pytest.mark.parametrize(("layers", "heads", "experts"), [(60, 40, ("main",)), (40, 40, ("high", "low"))])
def test_profiles_of_the_largest_models_stay_below_a_megabyte(
    tmp_path: Path, layers: int, heads: int, experts: tuple[str, ...]
) -> None:
    model = Fingerprint("wan", layers, heads, 128)
    empty = Figures.empty(MEASURED, layers, heads, len(CURVE_DENSITIES))
    keys = tuple(sorted(prompt_key(str(i)) for i in range(500)))
    profile = Profile(model, CONDITIONS, CURVE_DENSITIES, dict.fromkeys(experts, empty), 500, keys)
    assert save_profile(profile, tmp_path / "p.safetensors") < 1_000_000


@pytest.mark.skipif(os.name == "nt", reason="POSIX rights")
def test_a_file_is_readable_to_those_the_folder_is_shared_with(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    save_profile(a_profile(), path)
    (tmp_path / "plain").write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "p.safetensors"
    save_profile(a_profile(), path)
    before = path.read_bytes()

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, no_space)
    with pytest.raises(ProfileError, match=r"could not be written to p.safetensors \(No space left"):
        save_profile(a_profile(1), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["p.safetensors"]


def test_what_no_reader_would_take_is_not_written(tmp_path: Path) -> None:
    for name, mask in (
        ("../up", torch.zeros(1)),
        ("deep", torch.zeros(1, 1, 1, 1, 1)),
        ("f64", torch.zeros(1).double()),
    ):
        with pytest.raises(ProfileError):
            save_profile(replace(a_profile(), masks={name: mask}), tmp_path / "p.safetensors")
    assert os.listdir(tmp_path) == []


def test_every_run_may_add_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    assert add_to_file(a_profile(0, "a"), path).runs == 1
    assert add_to_file(a_profile(1, "b"), path).runs == 2
    assert same(load_profile(path), a_profile(0, "a").merged(a_profile(1, "b")))


@pytest.mark.parametrize("there", ["other model", "damaged", "newer"])
def test_adding_to_a_file_that_cannot_be_grown_leaves_it_alone(tmp_path: Path, there: str) -> None:
    path = tmp_path / "p.safetensors"
    save_profile(replace(a_profile(), fingerprint=replace(MODEL, family="hunyuan")), path)
    if there == "damaged":
        path.write_bytes(path.read_bytes()[:-1])
    if there == "newer":
        path.write_bytes(raw(facts=lambda facts: facts.update(schema=SCHEMA + 1)))
    before = path.read_bytes()
    with pytest.raises(ProfileError):
        add_to_file(a_profile(), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["p.safetensors"]


def taken_apart() -> tuple[dict[str, Any], bytes]:
    """Header and data of a good file."""
    with TemporaryDirectory() as folder:
        save_profile(a_profile(), Path(folder) / "good.safetensors")
        content = (Path(folder) / "good.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put_together(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def raw(
    facts: Callable[[dict[str, Any]], object] = lambda facts: None,
    header: Callable[[dict[str, Any]], object] = lambda header: None,
    data: Callable[[bytes], bytes] = lambda data: data,
) -> bytes:
    """A good file with something changed in it."""
    entries, body = taken_apart()
    known = json.loads(entries["__metadata__"]["draftattention_profile"])
    facts(known)
    entries["__metadata__"]["draftattention_profile"] = json.dumps(known)
    header(entries)
    return put_together(json.dumps(entries).encode(), data(body))


def figures_changed(name: str, value: float) -> bytes:
    """A good file, one number of a table replaced."""
    entries, body = taken_apart()
    begin, end = entries[f"0/{name}"]["data_offsets"]
    table = torch.frombuffer(bytearray(body[begin:end]), dtype=figure_forms(3, 4, 8)[name][1]).clone()
    table[5] = value
    changed = body[:begin] + table.numpy().tobytes() + body[end:]
    return put_together(json.dumps(entries).encode(), changed)


def deep(header: dict[str, Any]) -> None:
    header["__metadata__"]["draftattention_profile"] = "[" * 100_000 + "]" * 100_000


def repeated(header: dict[str, Any]) -> None:
    known = header["__metadata__"]["draftattention_profile"]
    header["__metadata__"]["draftattention_profile"] = known.replace('"runs": 1', '"runs": 9, "runs": 1')


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("exploded",)


def moved(header: dict[str, Any]) -> None:
    """Two tables over the same bytes."""
    header["0/gains"]["data_offsets"] = header["0/worst"]["data_offsets"]


def huge(header: dict[str, Any]) -> None:
    header["0/squared"]["shape"] = [3, 1 << 40, 1 << 40, 8]


HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "seven bytes": lambda: b"\0" * 7,
    "zeros": lambda: b"\0" * 1000,
    "text": lambda: b"not a profile at all",
    "a pickle": lambda: pickle.dumps(Bomb()),
    "an old pickle": lambda: pickle.dumps(Bomb(), protocol=2),
    "a zip as torch.save makes": lambda: b"PK\x03\x04" + b"\0" * 100,
    "header beyond the file": lambda: (1 << 62).to_bytes(8, "little") + b"{}" * 100,
    "header as long as can be said": lambda: b"\xff" * 8 + b"{}" * 100,
    "oversized header": lambda: put_together(b" " * (2 << 20), b""),
    "header that is no text": lambda: put_together(b"\xff\xfe\xfd", b""),
    "header that is no object": lambda: put_together(b"[1, 2]", b""),
    "header without end": lambda: put_together(b'{"a": {', b""),
    "nested beyond all measure": lambda: raw(header=deep),
    "repeated key": lambda: raw(header=repeated),
    "plain safetensors": lambda: raw(header=lambda h: h.pop("__metadata__")),
    "other metadata": lambda: raw(header=lambda h: h.update(__metadata__={"format": "pt"})),
    "metadata of another kind": lambda: raw(header=lambda h: h.update(__metadata__=7)),
    "older schema": lambda: raw(lambda f: f.update(schema=0)),
    "newer schema": lambda: raw(lambda f: f.update(schema=SCHEMA + 1)),
    "schema as text": lambda: raw(lambda f: f.update(schema=str(SCHEMA))),
    "no schema": lambda: raw(lambda f: f.pop("schema")),
    "unknown fact": lambda: raw(lambda f: f.update(more=1)),
    "missing fact": lambda: raw(lambda f: f.pop("runs")),
    "model of another size": lambda: raw(lambda f: f["fingerprint"].update(heads=5)),
    "more heads than there can be": lambda: raw(lambda f: f["fingerprint"].update(heads=1 << 40)),
    "no layers": lambda: raw(lambda f: f["fingerprint"].update(layers=0)),
    "layers as a fraction": lambda: raw(lambda f: f["fingerprint"].update(layers=3.0)),
    "unknown field of the model": lambda: raw(lambda f: f["fingerprint"].update(colour="blue")),
    "family that is a path": lambda: raw(lambda f: f["fingerprint"].update(family="../../etc")),
    "unknown rule": lambda: raw(lambda f: f["conditions"].update(rule="magic")),
    "unknown tail": lambda: raw(lambda f: f["conditions"].update(tails=["magic"])),
    "no tails": lambda: raw(lambda f: f["conditions"].update(tails=[])),
    "floor of NaN": lambda: raw(lambda f: f["conditions"].update(floor=float("nan"))),
    "densities out of order": lambda: raw(lambda f: f["densities"].reverse()),
    "density of infinity": lambda: raw(lambda f: f["densities"].__setitem__(7, float("inf"))),
    "density as text": lambda: raw(lambda f: f["densities"].__setitem__(7, "0.75")),
    "no densities": lambda: raw(lambda f: f.update(densities=[])),
    "a million densities": lambda: raw(lambda f: f.update(densities=[0.5] * 1_000_000)),
    "runs below nothing": lambda: raw(lambda f: f.update(runs=-1)),
    "runs as truth": lambda: raw(lambda f: f.update(runs=True)),
    "prompts in words": lambda: raw(lambda f: f.update(prompts=["a fox"])),
    "grid that is a path": lambda: raw(lambda f: f.update(grids={"../x": 1})),
    "two experts of one name": lambda: raw(lambda f: f["experts"].append(f["experts"][0])),
    "expert that is a path": lambda: raw(lambda f: f["experts"][0].update(name="../x")),
    "expert without figures": lambda: raw(lambda f: f["experts"].append({"name": "low", "weights": ""})),
    "NaN among errors": lambda: figures_changed("squared", float("nan")),
    "infinity among norms": lambda: figures_changed("norms", float("inf")),
    "negative error": lambda: figures_changed("squared", -1.0),
    "NaN among gains": lambda: figures_changed("gains", float("nan")),
    "gain beyond all measure": lambda: figures_changed("gains", 1000.0),
    "negative count": lambda: figures_changed("counts", -1),
    "tail that does not exist": lambda: figures_changed("tails", 2),
    "huge shape": lambda: raw(header=huge),
    "negative shape": lambda: raw(header=lambda h: h["0/squared"].update(shape=[-3, 3, 4, 8])),
    "table of another type": lambda: raw(header=lambda h: h["0/squared"].update(dtype="I32")),
    "table of unknown type": lambda: raw(header=lambda h: h["0/squared"].update(dtype="PYTHON")),
    "missing table": lambda: raw(header=lambda h: h.pop("0/gains")),
    "tables over each other": lambda: raw(header=moved),
    "offsets beyond the end": lambda: raw(header=lambda h: h["0/worst"].update(data_offsets=[1 << 40, 1 << 41])),
    "offsets that are no numbers": lambda: raw(header=lambda h: h["0/worst"].update(data_offsets=["a", "b"])),
    "entry of another kind": lambda: raw(header=lambda h: h.update({"0/worst": 5})),
    "extra table": lambda: raw(header=lambda h: h.update({"1/squared": h["0/squared"]})),
    "extra tensor": lambda: raw(
        header=lambda h: h.update(weights={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]})
    ),
    "mask named as a path": lambda: raw(
        header=lambda h: h.update({"masks/../../x": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}})
    ),
    "mask larger than it is": lambda: raw(
        header=lambda h: h.update({"masks/a": {"dtype": "U8", "shape": [1 << 30, 1 << 30], "data_offsets": [0, 0]}})
    ),
    "cut short": lambda: raw(data=lambda d: d[:-1]),
    "something at the end": lambda: raw(data=lambda d: d + b"more"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_refused_with_one_sentence(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "p.safetensors"
    content = HOSTILE[what]()
    path.write_bytes(content)
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    message = str(caught.value)
    assert "p.safetensors" in message and "\n" not in message and 20 < len(message) < 300 and ":" in message
    assert path.read_bytes() == content and os.listdir(tmp_path) == ["p.safetensors"]


@pytest.mark.parametrize(
    "what", ["huge shape", "negative shape", "table of another type", "missing table", "extra table", "extra tensor"]
)
def test_no_tensor_is_made_before_its_shape_is_known_to_be_right(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.safetensors"
    path.write_bytes(HOSTILE[what]())

    def decoded(data: bytes) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(profile_file, "tensors_from_bytes", decoded)
    with pytest.raises(ProfileError):
        load_profile(path)


def test_the_good_file_the_hostile_ones_are_made_from_is_read(tmp_path: Path) -> None:
    (tmp_path / "p.safetensors").write_bytes(raw())
    assert same(load_profile(tmp_path / "p.safetensors"), a_profile())


def test_a_refusal_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    for what, advice in {
        "older schema": "has schema 0, this version reads 1: calibrate again",
        "newer schema": "has schema 2, this version reads 1: update the node pack",
        "a pickle": "is a pickle, which may run anything and is never opened: choose",
        "cut short": "damaged or no profile: calibrate again or take another copy",
        "plain safetensors": "no DraftAttention profile: choose one made by calibration",
        "extra tensor": "other tensors than a profile of this model has: calibrate again",
    }.items():
        path.write_bytes(HOSTILE[what]())
        with pytest.raises(ProfileError, match=advice):
            load_profile(path)


def test_a_file_cut_anywhere_or_with_any_byte_changed_is_refused_or_whole(tmp_path: Path) -> None:
    good, path, rng = raw(), tmp_path / "p.safetensors", random.Random(0)
    for length in rng.sample(range(len(good)), 60):
        path.write_bytes(good[:length])
        with pytest.raises(ProfileError):
            load_profile(path)
    for _ in range(200):
        changed = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(good))] = rng.randrange(256)
        path.write_bytes(bytes(changed))
        try:
            found = load_profile(path)
        except ProfileError:
            continue
        assert list(found.experts) and all(
            bool(torch.isfinite(figures.squared).all()) for figures in found.experts.values()
        )


def test_no_more_is_read_than_a_profile_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_file, "MAX_FILE_BYTES", 5000)
    path = tmp_path / "p.safetensors"
    path.write_bytes(raw() + b"\0" * 5000)
    with pytest.raises(ProfileError, match="larger than any profile"):
        load_profile(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot be read: choose one that is listed"):
        load_profile(tmp_path / "none.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ProfileError, match="is not a file"):
        load_profile(tmp_path / "folder.safetensors")
    if hasattr(os, "mkfifo"):
        # Opening it would wait for ever.
        os.mkfifo(tmp_path / "pipe.safetensors")
        with pytest.raises(ProfileError, match="is not a file"):
            load_profile(tmp_path / "pipe.safetensors")
    with pytest.raises(ProfileError, match="cannot be read"):
        load_profile(tmp_path / "nul\0.safetensors")


def test_names_lead_nowhere_but_into_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "profiles"
    folder.mkdir()
    assert profile_path(folder, "wan 2.1_14B") == folder / "wan 2.1_14B.safetensors"
    assert profile_path(folder, "a.safetensors") == folder / "a.safetensors"
    bad = ("", ".", "..", "../a", "a/b", "a\\b", "/etc/passwd", "C:a", "a\0b", ".hidden", "a ", "a.", "x" * 200, "a\nb")
    for name in (*bad, "CON", "nul", "com1.txt", "~root", "$HOME", "*"):
        with pytest.raises(ProfileError, match="cannot name a profile"):
            profile_path(folder, name)
    save_profile(a_profile(), folder / "good.safetensors")
    (folder / ".part.safetensors").touch()
    (folder / "notes.txt").touch()
    if hasattr(os, "symlink"):
        (tmp_path / "outside.safetensors").touch()
        (folder / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
        with pytest.raises(ProfileError, match="a link that leaves the profiles' folder"):
            profile_path(folder, "link")
    assert profile_names(folder) == ["good"] and profile_names(tmp_path / "none") == []
