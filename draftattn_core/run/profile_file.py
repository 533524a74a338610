"""The profile's file: one `.safetensors` with its facts as JSON in the metadata.

Files may come from anyone. Everything a file claims is checked against small limits before anything is made from it, it
is read once, and a file that fails is refused as a whole with one sentence (`ProfileError`).
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as bytes_of_tensors
from torch import Tensor

from .figures import Figures, figure_forms
from .fingerprint import Conditions, Fingerprint, ProfileError
from .profile import MAX_NAMES, Profile

SCHEMA = 1
SUFFIX = ".safetensors"
MAX_FILE_BYTES = 256 << 20
_MAX_HEADER_BYTES = 1 << 20
_MAX_MASKS = 4096
_KEY = "draftattention_profile"
_MASK = re.compile(r"masks/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 ._+-]{0,119}")
# Windows gives these names to devices, whatever their ending.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d) *", re.IGNORECASE)
_MASK_TYPES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "F16": 2, "BF16": 2, "F32": 4}
_TYPES = {torch.int32: "I32", torch.float32: "F32", torch.float16: "F16", torch.uint8: "U8"}
_AGAIN = "calibrate again or take another copy"


def save_profile(profile: Profile, path: Path) -> int:
    """Write atomically: whoever reads `path` sees the old file or the new one, whole. Returns the size in bytes.

    Raises:
        ProfileError: if the file cannot be written, or its masks are named or sized as no reader would take them.
    """
    tensors: dict[str, Tensor] = {}
    for index, figures in enumerate(profile.experts.values()):
        tensors.update({f"{index}/{name}": table for name, table in figures.tensors().items()})
    tensors.update({f"masks/{name}": mask for name, mask in profile.masks.items()})
    # The format refuses tensors that share memory.
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    data = bytes_of_tensors(tensors, {_KEY: json.dumps(_facts(profile), sort_keys=True, allow_nan=False)})
    # What could not be read back is not written.
    _parsed(data, path.name)
    write_whole(data, path)
    return len(data)


def write_whole(data: bytes, path: Path) -> None:
    """Write atomically, the folder too; ProfileError if that fails."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not `tempfile`: its files would be unreadable to those the folder is shared with.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ProfileError(
            f"the profile could not be written to {path.name} ({error.strerror}): check the folder's rights and space"
        ) from error


def load_profile(path: Path) -> Profile:
    """Read and check a whole profile.

    Raises:
        ProfileError: if there is no such file or it is not a profile this version can use.
    """
    return _parsed(read_at_most(path, MAX_FILE_BYTES + 1), path.name)


def read_at_most(path: Path, most: int) -> bytes:
    """The first `most` bytes of a regular file; ProfileError if it is none."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise ProfileError(f"{path.name} is not a file: choose a profile ending in {SUFFIX}")
        with open(path, "rb") as file:
            return file.read(min(most, found.st_size + 1))
    except (OSError, ValueError) as error:
        if isinstance(error, ProfileError):
            raise
        raise ProfileError(f"the profile {path.name!r} cannot be read: choose one that is listed") from error


def add_to_file(profile: Profile, path: Path) -> Profile:
    """Merge a run's profile into the file at `path`, or begin it. Returns what the file holds now.

    Two processes that add at the same time lose one of the two runs, never the file.

    Raises:
        ProfileError: if the file there cannot be read or is about something else; it is left as it is.
    """
    grown = load_profile(path).merged(profile) if path.exists() else profile
    save_profile(grown, path)
    return grown


def profile_path(folder: Path, name: str) -> Path:
    """Where the profile `name` (with or without suffix) lies inside `folder`.

    Raises:
        ProfileError: if the name could lead anywhere else.
    """
    stem = name.removesuffix(SUFFIX)
    plain = _FILE.fullmatch(stem) and not stem.endswith((" ", ".")) and not _DEVICE.fullmatch(stem.split(".")[0])
    if not plain:
        raise ProfileError(f"{name[:80]!r} cannot name a profile: use letters, digits, space and . _ + - only")
    path = folder / f"{stem}{SUFFIX}"
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ProfileError(f"{name!r} is a link that leaves the profiles' folder: copy the file itself there")
    return path


def profile_names(folder: Path) -> list[str]:
    """Names in `folder` that `profile_path` accepts, without suffix, sorted; none if there is no such folder."""
    names = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            profile_path(folder, path.name)
        except ProfileError:
            continue
        names.append(path.name.removesuffix(SUFFIX))
    return names


def _facts(profile: Profile) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "fingerprint": asdict(profile.fingerprint),
        "conditions": asdict(profile.conditions),
        "densities": list(profile.densities),
        "experts": [{"name": name, "weights": figures.weights} for name, figures in profile.experts.items()],
        "runs": profile.runs,
        "prompts": list(profile.prompts),
        "grids": dict(profile.grids),
        "steps": dict(profile.steps),
    }


def _parsed(data: bytes, name: str) -> Profile:
    if len(data) > MAX_FILE_BYTES:
        raise ProfileError(f"{name} is larger than any profile ({MAX_FILE_BYTES >> 20} MiB): choose another file")
    with whole_file(name):
        entries, facts = header_of(data, name, _KEY, SCHEMA)
        return _profile(entries, facts, data)


@contextmanager
def whole_file(name: str) -> Iterator[None]:
    """Whatever goes wrong with what a file says becomes a ProfileError that names the file."""
    try:
        yield
    except ProfileError as error:
        raise ProfileError(f"{name}: {error}" if name not in str(error) else str(error)) from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError, SafetensorError) as error:
        raise ProfileError(f"{name} is damaged or no profile: {_AGAIN}") from error


def header_of(data: bytes, name: str, key: str, readable: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The file's table of tensors and its facts, still unchecked.

    Args:
        data: the file, or its beginning.
        key: of the facts in the metadata; readable: the schema this version reads.
    """
    pickled = data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    # A header of 640 bytes begins like a pickle, too; what follows its length does not.
    if data[:4] == b"PK\x03\x04" or (pickled and data[8:9] != b"{"):
        raise ProfileError(f"{name} is a pickle, which may run anything and is never opened: choose a {SUFFIX} profile")
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise ProfileError(f"{name} is cut short or no {SUFFIX} file: {_AGAIN}")
    if length > _MAX_HEADER_BYTES:
        raise ProfileError(f"{name} has a header larger than any profile's: {_AGAIN}")
    entries = _object(data[8 : 8 + length].decode("utf-8"))
    metadata = entries.pop("__metadata__", None)
    if not isinstance(metadata, dict) or key not in metadata:
        raise ProfileError(f"{name} is a {SUFFIX} file but no DraftAttention profile: choose one made by calibration")
    facts = _object(metadata[key])
    schema = facts.get("schema")
    if schema != readable or isinstance(schema, bool):
        newer = isinstance(schema, int) and schema > readable
        advice = "update the node pack" if newer else "calibrate again"
        raise ProfileError(f"{name} has schema {str(schema)[:20]}, this version reads {readable}: {advice}")
    return entries, facts


def _object(text: str) -> dict[str, Any]:
    """A JSON object without repeated keys, NaN or infinity."""

    def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("repeated key")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON number")

    found = json.loads(text, object_pairs_hook=no_repeats, parse_constant=refuse)
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


def _profile(entries: Mapping[str, Any], facts: dict[str, Any], data: bytes) -> Profile:
    """Build the profile once every tensor's name, type, shape and place is known to be the expected one."""
    wanted = {"schema", "fingerprint", "conditions", "densities", "experts", "runs", "prompts", "grids", "steps"}
    if set(facts) != wanted:
        raise ValueError("unknown or missing facts")
    fingerprint = Fingerprint(**facts["fingerprint"])
    given = dict(facts["conditions"])
    given["tile"] = None if given["tile"] is None else tuple(given["tile"])
    conditions = Conditions(**{**given, "tails": tuple(given["tails"])})
    densities, experts = tuple(facts["densities"]), list(facts["experts"])
    names = [str(expert["name"]) for expert in experts]
    if len(set(names)) < len(names) or len(names) > MAX_NAMES or any(set(e) != {"name", "weights"} for e in experts):
        raise ValueError("experts")
    forms = figure_forms(fingerprint.layers, fingerprint.heads, len(densities))
    expected = {
        f"{index}/{name}": (_TYPES[dtype], list(shape))
        for index in range(len(names))
        for name, (shape, dtype) in forms.items()
    }
    masks = [name for name in entries if name not in expected]
    if set(expected) - set(entries) or len(masks) > _MAX_MASKS or not all(_MASK.fullmatch(name) for name in masks):
        raise ProfileError(f"holds other tensors than a profile of this model has: {_AGAIN}")
    for name, entry in entries.items():
        _check_entry(entry, expected.get(name))
    tensors = tensors_from_bytes(data)
    figures = {}
    for index, expert in enumerate(experts):
        if not isinstance(expert["weights"], str) or len(expert["weights"]) > 64:
            raise ValueError("weights")
        figures[names[index]] = Figures(expert["weights"], **{name: tensors[f"{index}/{name}"] for name in forms})
    return Profile(
        fingerprint, conditions, densities, figures, facts["runs"], tuple(facts["prompts"]),
        dict(facts["grids"]), dict(facts["steps"]),
        {name.removeprefix("masks/"): tensors[name] for name in masks},
    )  # fmt: skip


def _check_entry(entry: Any, expected: tuple[str, list[int]] | None) -> None:
    """Raises ValueError unless a tensor's entry is the expected one, or that of a mask of harmless type and shape."""
    kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if expected is not None:
        if (kind, shape) != expected:
            raise ValueError("figures of another form")
        return
    if kind not in _MASK_TYPES or len(shape) > 4 or not all(isinstance(n, int) and 0 <= n < 1 << 31 for n in shape):
        raise ValueError("mask of another form")
    size = _MASK_TYPES[kind]
    for n in shape:
        size *= n
    if size != end - begin or size > MAX_FILE_BYTES:
        raise ValueError("mask of another size")
