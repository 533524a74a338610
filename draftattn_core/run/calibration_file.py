"""The file of a calibration: one `.safetensors` beside the profile's, in a folder of its own, for it may be large.

It is checked as a profile's file is: everything that it claims, before anything is made from it, and a file that fails
is refused as a whole with one sentence (`ProfileError`). For a model of 40 layers and heads, 50 steps and 256 blocks
(Wan 14B, 480p) it holds 5.2 GB of votes, a byte for every step, layer, head and pair of blocks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as bytes_of_tensors
from torch import Tensor

from ..geometry.grid import TokenGrid
from ..geometry.layout import Layout
from ..method.calibatt.masks import EnergyTarget
from .calibration import Calibration, ExpertVotes, calibration_forms, named_tensors
from .fingerprint import Fingerprint, ProfileError
from .profile import MAX_NAMES, MAX_PROMPTS, Profile
from .profile_file import header_of, load_profile, read_at_most, whole_file, write_whole

SCHEMA = 1
FOLDER = "calibatt"
MAX_FILE_BYTES = 64 << 30
# A grid, or blocks, beyond these belong to no video model; layouts are built from what a file says.
MAX_TOKENS = 1 << 21
MAX_BLOCKS = 1 << 14
_KEY = "draftattention_calibration"
_TYPES = {"torch.int32": ("I32", 4), "torch.float32": ("F32", 4), "torch.uint8": ("U8", 1)}
_FACTS = {"schema", "fingerprint", "layout", "target", "experts", "prompts", "runs"}
_LAYOUT = {"grid", "q_block", "k_block", "tile", "order"}


def calibration_path(profile: Path) -> Path:
    """Where the masks of the profile at a path lie."""
    return profile.parent / FOLDER / profile.name


def load_profile_with_masks(path: Path) -> Profile:
    """The profile at `path`, with the calibration beside it if there is one; see `load_profile`, `load_calibration`."""
    profile, beside = load_profile(path), calibration_path(path)
    if not beside.exists():
        return profile
    calibration = load_calibration(beside)
    if calibration.fingerprint != profile.fingerprint:
        raise ProfileError(
            f"the masks beside {path.name} are for {calibration.fingerprint}, the profile for {profile.fingerprint}: "
            f"remove {FOLDER}/{path.name} or calibrate again"
        )
    return replace(profile, calibration=calibration)


def save_calibration(calibration: Calibration, path: Path) -> int:
    """Write atomically; returns the size in bytes. ProfileError if that fails."""
    tensors = {
        f"{index}/{name}": tensor.clone()
        for index, votes in enumerate(calibration.experts.values())
        for name, tensor in named_tensors(votes).items()
    }
    data = bytes_of_tensors(tensors, {_KEY: json.dumps(_facts(calibration), sort_keys=True, allow_nan=False)})
    write_whole(data, path)
    return len(data)


def load_calibration(path: Path) -> Calibration:
    """Read and check a whole calibration.

    Raises:
        ProfileError: if there is no such file or it is not a calibration this version can use.
    """
    data = read_at_most(path, MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ProfileError(f"{path.name} is larger than any calibration ({MAX_FILE_BYTES >> 30} GiB)")
    with whole_file(path.name):
        entries, facts = header_of(data, path.name, _KEY, SCHEMA)
        return _calibration(entries, facts, data)


def add_to_calibration(calibration: Calibration, path: Path) -> Calibration:
    """Merge a run's votes into the file at `path`, or begin it. Returns what the file holds now.

    Raises:
        ProfileError: if the file there cannot be read or is about something else; it is left as it is.
    """
    grown = load_calibration(path).merged(calibration) if path.exists() else calibration
    save_calibration(grown, path)
    return grown


def _facts(calibration: Calibration) -> dict[str, Any]:
    layout = calibration.layout
    return {
        "schema": SCHEMA,
        "fingerprint": asdict(calibration.fingerprint),
        "layout": {
            "grid": list(layout.grid.as_tuple()),
            "q_block": layout.q_block,
            "k_block": layout.k_block,
            "tile": None if layout.tile is None else list(layout.tile),
            "order": layout.order,
        },
        "target": asdict(calibration.target),
        "experts": [
            {"name": name, "weights": votes.weights, "progress": list(votes.progress)}
            for name, votes in calibration.experts.items()
        ],
        "prompts": list(calibration.prompts),
        "runs": calibration.runs,
    }


def _calibration(entries: Mapping[str, Any], facts: dict[str, Any], data: bytes) -> Calibration:
    """Build the calibration once every tensor's name, type, shape and place is known to be the expected one."""
    if set(facts) != _FACTS:
        raise ValueError("unknown or missing facts")
    model, layout, target = Fingerprint(**facts["fingerprint"]), _layout(facts["layout"]), dict(facts["target"])
    if set(target) != {"floor", "start", "rate", "source"} or not isinstance(target["source"], str):
        raise ValueError("target")
    experts, prompts, runs = list(facts["experts"]), list(facts["prompts"]), facts["runs"]
    if not 1 <= len(experts) <= MAX_NAMES or any(set(one) != {"name", "weights", "progress"} for one in experts):
        raise ValueError("experts")
    if len({one["name"] for one in experts}) < len(experts):
        raise ValueError("experts")
    if len(prompts) > MAX_PROMPTS or not all(isinstance(key, str) and len(key) == 16 for key in prompts):
        raise ValueError("prompts")
    if not isinstance(runs, int) or isinstance(runs, bool) or runs < 0:
        raise ValueError("runs")
    forms = calibration_forms(model, layout)
    for name, entry in entries.items():
        _check_entry(name, entry, forms, experts, model.layers)
    tensors = tensors_from_bytes(data)
    found = {
        str(one["name"]): _expert(one, {name: tensors[name] for name in entries if name.startswith(f"{index}/")})
        for index, one in enumerate(experts)
    }
    return Calibration(
        model, layout, EnergyTarget(**{**target, "source": target["source"][:200]}), found, tuple(prompts), runs
    )


def _layout(given: dict[str, Any]) -> Layout:
    if set(given) != _LAYOUT:
        raise ValueError("layout")
    t, h, w = (_whole(size) for size in given["grid"])
    q_block, k_block = _whole(given["q_block"]), _whole(given["k_block"])
    tile = None if given["tile"] is None else tuple(_whole(size) for size in given["tile"])
    if t * h * w > MAX_TOKENS or t * h * w > MAX_BLOCKS * min(q_block, k_block):
        raise ValueError("grid")
    return Layout(TokenGrid(t, h, w), 0, 0, q_block, k_block, tile, given["order"])  # type: ignore[arg-type]


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_TOKENS:
        raise ValueError("size")
    return value


def _check_entry(name: str, entry: Any, forms: Mapping[str, Any], experts: list[Any], layers: int) -> None:
    """Raises ValueError unless a tensor is one that the facts announce, of the form they give it."""
    index, _, rest = name.partition("/")
    what, _, layer = rest.partition("/")
    per_layer = what in ("votes", "energy")
    if not index.isdecimal() or int(index) >= len(experts) or what not in forms or per_layer != layer.isdecimal():
        raise ValueError("tensor")
    if per_layer and (str(int(layer)) != layer or int(layer) >= layers):
        raise ValueError("layer")
    shape, dtype = forms[what]
    steps = len(experts[int(index)]["progress"])
    wanted = [steps if size < 0 else size for size in shape]
    kind, size = _TYPES[str(dtype)]
    for length in wanted:
        size *= length
    begin, end = entry["data_offsets"]
    if (entry["dtype"], entry["shape"]) != (kind, wanted) or end - begin != size:
        raise ValueError("form")


def _expert(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ExpertVotes:
    if not isinstance(facts["weights"], str) or len(facts["weights"]) > 64:
        raise ValueError("weights")
    named = {name.partition("/")[2]: tensor for name, tensor in tensors.items()}
    by_layer: dict[str, dict[int, Tensor]] = {"votes": {}, "energy": {}}
    for name, tensor in named.items():
        what, _, layer = name.partition("/")
        if layer:
            by_layer[what][int(layer)] = tensor
    return ExpertVotes(
        facts["weights"],
        tuple(float(one) for one in facts["progress"]),
        named["masks"],
        dict(sorted(by_layer["votes"].items())),
        named["similarity"],
        dict(sorted(by_layer["energy"].items())),
        named["counted"],
    )
