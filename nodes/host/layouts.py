"""What the tokens of a model's video self-attention are: grid, extra tokens before and after, layer.

Everything is derived from what the host publishes (`grid_sizes`, `img_slice`, `block_index`) or from the latent, the
patch size and the arguments of the model call. A model this file does not know, or a call whose tokens do not add up,
has no layout and runs dense.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...draftattn_core.geometry.grid import TokenGrid
from ...draftattn_core.phrase import Text
from ...draftattn_core.run.report import DenseReason
from ..words import Words
from .text_order import text_comes_first


@dataclass(frozen=True)
class Tokens:
    """The sequence of a video self-attention call, in the host's order: extra, video, extra."""

    grid: TokenGrid
    before: int = 0
    after: int = 0

    @property
    def total(self) -> int:
        return self.before + self.grid.tokens + self.after


@dataclass(frozen=True)
class NoLayout:
    """Why a model call has no layout, as a counted reason and in words.

    Attributes:
        candidate: the layout if the host publishes, at the attention call itself, that text comes first.
    """

    reason: DenseReason
    message: Text
    candidate: Tokens | None = None


Arguments = Mapping[str, Any]
Family = Callable[[Any, Arguments], "Tokens | NoLayout"]


def family_of(network: Any) -> Family | None:
    """The rule for a diffusion model, by the host's own class of it; None for a model this file does not know."""
    for cls in type(network).__mro__:
        if cls.__name__ in FAMILIES:
            return FAMILIES[cls.__name__]
    return None


def describe(network: Any, arguments: Arguments) -> Tokens | NoLayout:
    """Tokens of the video self-attention calls that a model call with these arguments will make.

    Args:
        network: the host's diffusion model.
        arguments: arguments of its forward by name; `x` is the latent (B, C, T, H, W).
    """
    family = family_of(network)
    if family is None:
        name = type(network).__name__
        return NoLayout(DenseReason.UNKNOWN_GRID, Words("layout_unknown", name=name))
    return family(network, arguments)


def _ceil(size: int, patch: int) -> int:
    return -(-size // patch)


def _patches(tensor: Any, patch: tuple[int, ...], rounding: Callable[[int, int], int] = _ceil) -> tuple[int, int, int]:
    t, h, w = (rounding(int(size), p) for size, p in zip(tensor.shape[-3:], patch, strict=True))
    return t, h, w


def _count(tensor: Any, patch: tuple[int, ...]) -> int:
    t, h, w = _patches(tensor, patch)
    return t * h * w


def latent(arguments: Arguments) -> Any:
    """The video's latent, also where the model makes audio beside it."""
    x = arguments["x"]
    return x[0] if isinstance(x, (list, tuple)) else x


def _wan(network: Any, arguments: Arguments) -> Tokens | NoLayout:
    """[ref_conv tokens][video, with concatenated frames][context streams]"""
    patch = tuple(network.patch_size)
    x = latent(arguments)
    t, h, w = _patches(x, patch)
    if arguments.get("time_dim_concat") is not None:
        joined = x.shape[2] + _padded(int(arguments["time_dim_concat"].shape[2]), patch[0])
        t = _ceil(joined, patch[0])
    before = after = 0
    reference = arguments.get("reference_latent")
    if getattr(network, "ref_conv", None) is not None and reference is not None:
        # ref_conv pads nothing: it floors.
        before = (int(reference.shape[-2]) // patch[1]) * (int(reference.shape[-1]) // patch[2])
    for stream in arguments.get("context_latents") or ():
        after += _count(stream, patch)
    return Tokens(TokenGrid(t, h, w), before, after)


def _padded(size: int, patch: int) -> int:
    return _ceil(size, patch) * patch


def _wan_causal(network: Any, arguments: Arguments) -> Tokens | NoLayout:
    """As Wan, except where frames are made one after another on cached keys."""
    if (arguments.get("transformer_options") or {}).get("ar_state") is not None:
        return NoLayout(
            DenseReason.UNKNOWN_GRID,
            Words("layout_causal"),
        )
    return _wan(network, arguments)


def _wan_s2v(network: Any, arguments: Arguments) -> Tokens | NoLayout:
    """[video][reference][FramePack motion]"""
    patch = tuple(network.patch_size)
    grid = TokenGrid(*_patches(latent(arguments), patch))
    after = 0
    reference, motion = arguments.get("reference_latent"), arguments.get("reference_motion")
    if reference is not None:
        after += _count(reference, patch)
    if motion is not None:
        h, w = int(motion.shape[3]), int(motion.shape[4])
        # Buckets of 1, 2 and 16 frames under convolutions of stride (1,2,2), (2,4,4) and (4,8,8).
        for frames, stride in zip(network.frame_packer.zip_frame_buckets, (1, 2, 4), strict=True):
            after += (frames // stride) * (h // (2 * stride)) * (w // (2 * stride))
    return Tokens(grid, 0, after)


def _wan_humo(network: Any, arguments: Arguments) -> Tokens | NoLayout:
    """[video][reference]"""
    patch = tuple(network.patch_size)
    reference = arguments.get("reference_latent")
    after = 0 if reference is None else _count(reference, patch)
    return Tokens(TokenGrid(*_patches(latent(arguments), patch)), 0, after)


def _wan_scail(network: Any, arguments: Arguments) -> Tokens | NoLayout:
    """[reference frames and video][pose]"""
    patch = tuple(network.patch_size)
    t, h, w = _patches(latent(arguments), patch)
    reference, pose = arguments.get("reference_latent"), arguments.get("pose_latents")
    if reference is not None:
        t += _ceil(int(reference.shape[2]), patch[0])
    return Tokens(TokenGrid(t, h, w), 0, 0 if pose is None else _count(pose, patch))


def _hunyuan(network: Any, arguments: Arguments) -> Tokens | NoLayout:
    """[text][reference][video] or [reference][video][text], as the host's own block has it."""
    patch = tuple(network.patch_size)
    if len(patch) != 3:
        return NoLayout(DenseReason.UNKNOWN_GRID, Words("layout_image"))
    grid = TokenGrid(*_patches(latent(arguments), patch))
    text = int(arguments["context"].shape[1])
    if arguments.get("txt_byt5") is not None and getattr(network, "byt5_in", None) is not None:
        text += int(arguments["txt_byt5"].shape[1])
    if arguments.get("clip_fea") is not None:
        text += int(arguments["clip_fea"].shape[1])
    reference = 0 if arguments.get("ref_latent") is None else _count(arguments["ref_latent"], patch)
    first = text_comes_first(network)
    if first is None:
        return NoLayout(DenseReason.UNKNOWN_GRID, Words("layout_order"), Tokens(grid, text + reference, 0))
    return Tokens(grid, text + reference, 0) if first else Tokens(grid, reference, text)


def _video_only(patch_of: Callable[[Any], tuple[int, int, int]]) -> Family:
    def family(network: Any, arguments: Arguments) -> Tokens | NoLayout:
        x = latent(arguments)
        if len(x.shape) != 5:
            return NoLayout(DenseReason.UNKNOWN_GRID, Words("layout_image"))
        return Tokens(TokenGrid(*_patches(x, patch_of(network))))

    return family


def _mochi(network: Any, arguments: Arguments) -> Tokens | NoLayout:
    """[video][text, cropped to the number of tokens in use]"""
    patch = int(network.patch_size)
    grid = TokenGrid(*_patches(latent(arguments), (1, patch, patch)))
    kept = arguments.get("num_tokens")
    if kept is None:
        kept = inspect.signature(network.forward).parameters["num_tokens"].default
    return Tokens(grid, 0, min(int(kept), int(arguments["context"].shape[1])))


def _cogvideox(network: Any, arguments: Arguments) -> Tokens | NoLayout:
    """[text][video]"""
    patch = int(network.patch_size)
    temporal = 1 if network.patch_size_t is None else int(network.patch_size_t)
    grid = TokenGrid(*_patches(latent(arguments), (temporal, patch, patch)))
    return Tokens(grid, int(arguments["context"].shape[1]), 0)


def _minimax(network: Any, arguments: Arguments) -> Tokens | NoLayout:
    return NoLayout(
        DenseReason.UNKNOWN_GRID,
        Words("layout_minimax"),
    )


def _triple(network: Any) -> tuple[int, int, int]:
    t, h, w = network.patch_size
    return int(t), int(h), int(w)


def _cosmos(network: Any) -> tuple[int, int, int]:
    return int(network.patch_temporal), int(network.patch_spatial), int(network.patch_spatial)


FAMILIES: Mapping[str, Family] = {
    "WanModel_S2V": _wan_s2v,
    "HumoWanModel": _wan_humo,
    "SCAILWanModel": _wan_scail,
    "CausalWanModel": _wan_causal,
    "WanModel": _wan,
    "HunyuanVideo": _hunyuan,
    "Kandinsky5": _video_only(_triple),
    "MiniTrainDIT": _video_only(_cosmos),
    "LTXVModel": _video_only(lambda network: (1, 1, 1)),
    "AsymmDiTJoint": _mochi,
    "CogVideoXTransformer3DModel": _cogvideox,
    "MiniMaxH3Model": _minimax,
}


BLOCK_LISTS = (
    "double_blocks",
    "single_blocks",
    "blocks",
    "vace_blocks",
    "visual_transformer_blocks",
    "transformer_blocks",
)


# Arguments of a model call of which some models get one entry per video token.
NO_SEQUENCES = frozenset({"x", "t", "timestep", "timesteps", "a_timestep"})


def other_lengths(arguments: Arguments) -> frozenset[int]:
    """Lengths of the token sequences a model call brings along besides the video (text, image embeddings, audio)."""
    sequences = (
        value for name, value in arguments.items() if name not in NO_SEQUENCES and len(getattr(value, "shape", ())) == 3
    )
    lengths = {int(sequence.shape[1]) for sequence in sequences}
    if isinstance(arguments["x"], (list, tuple)):  # video and audio in one model: (B, C, tokens, bands)
        reference = arguments.get("ref_audio")
        for stream in arguments["x"][1:]:
            if len(stream.shape) == 4:
                lengths.add(int(stream.shape[2]))
                if reference is not None:  # put before the audio that is made
                    lengths.add(int(stream.shape[2]) + int(reference["tokens"].shape[1]))
    return frozenset(lengths)


def layer_count(network: Any) -> int:
    """How many video self-attention layers the model has; 0 if it does not say."""
    return sum(len(getattr(network, name)) for name in BLOCK_LISTS if hasattr(network, name))


def layer_of(network: Any, options: Mapping[str, Any], seen: dict[tuple[str, int], int], counted: int) -> int:
    """Index of the layer that is calling.

    Published block indices count from zero per block type; a second self-attention under the same index is VACE's
    control block, numbered after the main blocks. Without an index layers are counted in the order they run.

    Args:
        options: the call's transformer_options.
        seen: visits per (block type, block index) in this model call; this one is added.
        counted: video self-attention calls in this model call so far.
    """
    index = options.get("block_index")
    if index is None:
        return counted
    kind = str(options.get("block_type", ""))
    visits = seen.get((kind, index), 0)
    seen[(kind, index)] = visits + 1
    if kind == "single" and hasattr(network, "double_blocks"):
        return int(index) + len(network.double_blocks)
    if visits and hasattr(network, "vace_blocks"):
        mapping = getattr(network, "vace_layers_mapping", {})
        return len(network.blocks) + int(mapping.get(index, counted))
    return int(index)
