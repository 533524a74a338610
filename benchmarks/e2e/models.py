"""The models: diffusers' own classes in full size with random weights, and tiny ones of the same classes.

Diffusers is imported when the first one is built: a machine without it can still say what would run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from draftattention.draftattn_core.hosts.diffusers.processor import _with_attention
from draftattention.draftattn_core.hosts.diffusers.text_mask import read_text_mask

Inputs = Callable[[bool, torch.device, torch.dtype], dict[str, Any]]


@dataclass(frozen=True)
class Model:
    """A model in full size and in small, with one step's inputs.

    Attributes:
        name: with the size of its video.
        build: the transformer, tiny or not.
        inputs: keyword arguments of one step, batch 1, without the timestep.
        attention: (heads, video and text tokens, head size) of its video self-attention in full size.
        layers: how many of those it has.
        timestep: type of the timestep it takes.
        video, text: tokens that pass through the weights of either; not all text is in the self-attention.
        reads_text: what the names of weights contain that text passes through.
        once: what the names of weights contain that see one vector a step: the timestep, and modulation made of it.
    """

    name: str
    build: Callable[[bool], Any]
    inputs: Inputs
    attention: tuple[int, int, int]
    layers: int
    timestep: torch.dtype
    video: int
    text: int
    reads_text: tuple[str, ...]
    once: tuple[str, ...]

    @property
    def attention_flops(self) -> float:
        """Of the two products of dense self-attention in all layers, one step."""
        heads, tokens, dim = self.attention
        return 4.0 * tokens**2 * dim * heads * self.layers

    def reads(self, weight: str) -> Literal["video", "text", "once"]:
        """What passes through a weight, by the name of the parameter."""
        if any(part in weight for part in self.once):
            return "once"
        return "text" if any(part in weight for part in self.reads_text) else "video"


def _wan(tiny: bool) -> Any:
    from diffusers import WanTransformer3DModel

    if tiny:
        return WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=24, num_layers=2, ffn_dim=32, text_dim=16, freq_dim=32
        )
    return WanTransformer3DModel()


def _wan_inputs(tiny: bool, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    frames, height, width, text = (3, 16, 24, 16) if tiny else (21, 90, 160, 4096)
    return {
        "hidden_states": torch.randn(1, 16, frames, height, width, device=device, dtype=dtype),
        "encoder_hidden_states": torch.randn(1, 11 if tiny else 512, text, device=device, dtype=dtype),
    }


def _hunyuan(tiny: bool) -> Any:
    from diffusers import HunyuanVideo15Transformer3DModel

    if not tiny:
        return HunyuanVideo15Transformer3DModel(task_type="t2v")
    return HunyuanVideo15Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=16,
        text_embed_2_dim=8,
        image_embed_dim=12,
        rope_axes_dim=(4, 6, 6),
    )


def _hunyuan_inputs(tiny: bool, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """1,000 text tokens that are read; no glyphs and no picture, so their places are masked, as in text to video."""
    frames, height, width = (3, 8, 12) if tiny else (31, 45, 80)
    text, glyphs, image = (11, 6, 5) if tiny else (1000, 256, 729)
    sizes = (16, 8, 12) if tiny else (3584, 1472, 1152)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    return {
        "hidden_states": random(1, 65, frames, height, width),
        "encoder_hidden_states": random(1, text, sizes[0]),
        "encoder_attention_mask": torch.ones(1, text, device=device, dtype=torch.long),
        "encoder_hidden_states_2": random(1, glyphs, sizes[1]),
        "encoder_attention_mask_2": torch.zeros(1, glyphs, device=device, dtype=torch.long),
        "image_embeds": torch.zeros(1, image, sizes[2], device=device, dtype=dtype),
    }


MODELS = {
    model.name: model
    for model in (
        Model(
            "Wan 14B 720p",
            _wan,
            _wan_inputs,
            (40, 75_600, 128),
            40,
            torch.long,
            75_600,
            512,
            ("attn2.to_k", "attn2.to_v", "text_embedder"),
            ("time_embedder", "time_proj"),
        ),
        Model(
            "HunyuanVideo 1.5 720p",
            _hunyuan,
            _hunyuan_inputs,
            (16, 112_600, 128),
            54,
            torch.bfloat16,
            111_600,
            1000 + 256 + 729,
            ("attn.add_", "to_add_out", "ff_context", "context_embedder", "image_embedder", "cond_type_embed"),
            ("norm1.linear", "norm1_context.linear", "norm_out.linear", "time_embed", "time_text_embed"),
        ),
    )
}


@contextlib.contextmanager
def built_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Modules made inside have their parameters on `device` in `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def linear_flops(model: Model) -> float:
    """Of the products of one step's tokens with the weights in full size, found without allocating them.

    Raises:
        ImportError: without diffusers, which knows the weights.
    """
    seen = {"video": model.video, "text": model.text, "once": 1}
    with built_on(torch.device("meta"), torch.bfloat16):
        transformer = model.build(False)
    weights = ((name, x) for name, x in transformer.named_parameters() if x.ndim > 1)
    return float(sum(2.0 * x.numel() * seen[model.reads(name)] for name, x in weights))


def weight_bytes(model: Model, tiny: bool, dtype: torch.dtype) -> int:
    """Bytes its weights take, found without allocating them."""
    with built_on(torch.device("meta"), dtype):
        transformer = model.build(tiny)
    return sum(x.numel() * x.element_size() for x in (*transformer.parameters(), *transformer.buffers()))


class _TextLeftOut:
    """A processor that runs dense attention without the text nobody reads, and so without a mask.

    HunyuanVideo 1.5's own makes an L x L mask, 12 GB at 720p, which no fast kernel takes: compared with that, anything
    looks fast. Text that is read comes first, so leaving out the rest is the same attention.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self._read: tuple[Tensor, int] | None = None

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: Any = None,
    ) -> Any:
        dispatch = type(self.inner).__call__.__globals__["dispatch_attention_fn"]
        video, text = hidden_states.shape[1], encoder_hidden_states.shape[1]
        if self._read is None or self._read[0] is not attention_mask:
            found = read_text_mask(attention_mask, video, text)
            if found is None or found.bias is not None:
                raise ValueError("the text that is read does not come first")
            self._read = (attention_mask, found.kept)
        kept = self._read[1]

        def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, **options: Any) -> Tensor:
            q, k, v = (x[:, : video + kept] for x in (query, key, value))
            return pad(dispatch(q, k, v, **options), (0, 0, 0, 0, 0, text - kept))

        run = _with_attention(self.inner, attention)
        return run(self.inner, attn, hidden_states, encoder_hidden_states, attention_mask.to("meta"), image_rotary_emb)


@contextlib.contextmanager
def without_masks(transformer: nn.Module) -> Iterator[None]:
    """Dense attention without masks while inside, where the model has any."""
    blocks = getattr(transformer, "transformer_blocks", ())
    before = [(block.attn, block.attn.processor) for block in blocks]
    for attn, processor in before:
        attn.set_processor(_TextLeftOut(processor))
    try:
        yield
    finally:
        for attn, processor in before:
            attn.set_processor(processor)
