"""Read and write the tiny Wan checkpoint: original Wan names on disk, diffusers names in memory.

ComfyUI's UNETLoader recognises the original names of Wan 2.1; diffusers' `WanTransformer3DModel` has its own. The map
between them is one to one (no tensor is split, fused or transposed), so a load followed by a save is exact.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import save_file

CHECKPOINT = Path(__file__).with_name("tiny_wan.safetensors")

# Wan 2.1 t2v at toy size, as keyword arguments of diffusers' WanTransformer3DModel.
TINY_CONFIG: dict[str, object] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 1024,
    "freq_dim": 256,
    "ffn_dim": 768,
    "num_layers": 5,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
}

# (original Wan, diffusers); within a block norm2 and norm3 swap their numbers.
_OUTER = (
    ("patch_embedding", "patch_embedding"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("head.head", "proj_out"),
    ("head.modulation", "scale_shift_table"),
)
_BLOCK = (
    ("self_attn.norm_q", "attn1.norm_q"),
    ("self_attn.norm_k", "attn1.norm_k"),
    ("self_attn.q", "attn1.to_q"),
    ("self_attn.k", "attn1.to_k"),
    ("self_attn.v", "attn1.to_v"),
    ("self_attn.o", "attn1.to_out.0"),
    ("cross_attn.norm_q", "attn2.norm_q"),
    ("cross_attn.norm_k", "attn2.norm_k"),
    ("cross_attn.q", "attn2.to_q"),
    ("cross_attn.k", "attn2.to_k"),
    ("cross_attn.v", "attn2.to_v"),
    ("cross_attn.o", "attn2.to_out.0"),
    ("norm3", "norm2"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
    ("modulation", "scale_shift_table"),
)
_BLOCK_KEY = re.compile(r"blocks\.(\d+)\.(.+)")


def _rename(key: str, source: int) -> str:
    match = _BLOCK_KEY.fullmatch(key)
    prefix, rest, table = (f"blocks.{match[1]}.", match[2], _BLOCK) if match else ("", key, _OUTER)
    for pair in table:
        old, new = pair[source], pair[1 - source]
        if rest == old or rest.startswith(old + "."):
            return prefix + new + rest[len(old) :]
    raise KeyError(f"no {'diffusers' if source == 0 else 'Wan'} name is known for the tensor {key!r}")


def wan_to_diffusers(key: str) -> str:
    """Name in diffusers of a tensor of the original Wan 2.1 t2v state dict. Raises KeyError for an unknown name."""
    return _rename(key, 0)


def diffusers_to_wan(key: str) -> str:
    """Inverse of `wan_to_diffusers`. Raises KeyError for an unknown name."""
    return _rename(key, 1)


def new_model(**overrides: object) -> WanTransformer3DModel:
    """A `WanTransformer3DModel` of `TINY_CONFIG` (with overrides), randomly initialised."""
    return WanTransformer3DModel(**{**TINY_CONFIG, **overrides})


def _host_config(config: dict[str, object]) -> dict[str, object]:
    """The part ComfyUI (0.15.1 and later) cannot read off the tensor shapes: it assumes heads of 128 and T5 text."""
    return {"num_heads": config["num_attention_heads"], "text_dim": config["text_dim"]}


def save(
    state: dict[str, torch.Tensor],
    path: Path = CHECKPOINT,
    *,
    config: dict[str, object] | None = None,
    notes: dict[str, object] | None = None,
) -> None:
    """Write a diffusers state dict as float16 under the original Wan names.

    `config` (default `TINY_CONFIG`) goes to the metadata twice: as `config`, the form ComfyUI reads, and as
    `diffusers_config`, from which `load` rebuilds the class. `notes` (training step, seed, ...) goes there as JSON.
    The file is replaced in one step, so that a reader never sees half of it.
    """
    config = dict(config or TINY_CONFIG)
    tensors = {
        diffusers_to_wan(key): value.detach().to("cpu", torch.float16).contiguous() for key, value in state.items()
    }
    metadata = {
        "format": "pt",
        "config": json.dumps({"transformer": _host_config(config)}),
        "diffusers_config": json.dumps(config),
        "notes": json.dumps(notes or {}),
    }
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata=metadata)
    partial.replace(path)


def notes(path: Path = CHECKPOINT) -> dict[str, object]:
    """What `save` was given as `notes`."""
    with safe_open(path, framework="pt") as file:
        return json.loads((file.metadata() or {}).get("notes", "{}"))


def load(
    path: Path = CHECKPOINT, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> WanTransformer3DModel:
    """The model of `path` as a diffusers class in eval mode.

    Raises FileNotFoundError when the file is missing (`python -m demo.train` makes it), KeyError for a tensor that Wan
    2.1 t2v does not have, RuntimeError when one is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: train it with `python -m demo.train`")
    with safe_open(path, framework="pt") as file:
        config = json.loads((file.metadata() or {})["diffusers_config"])
        state = {wan_to_diffusers(key): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    config["patch_size"] = tuple(config["patch_size"])
    model = WanTransformer3DModel(**config)
    model.load_state_dict({key: value.to(torch.float32) for key, value in state.items()})
    model = model.to(device)
    return (model if dtype == torch.float32 else model.to(dtype)).eval()
