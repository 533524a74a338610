"""What each process of `test_parallel` does: a tiny model, once alone and once over all ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from diffusers import (
    ContextParallelConfig,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoTransformer3DModel,
    WanTransformer3DModel,
)

from draftattention.draftattn_core import Policy, Schedule, Settings
from draftattention.draftattn_core.hosts.diffusers.apply import apply_draft_attention
from draftattention.draftattn_core.hosts.diffusers.parallel import context_parallel_plan

HEADS = 4


def model_of(name: str, heads: int = HEADS) -> Any:
    torch.manual_seed(0)
    if name == "wan":
        made = WanTransformer3DModel(
            num_attention_heads=heads, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
            ffn_dim=32, num_layers=2, rope_max_seq_len=32,
        )  # fmt: skip
    elif name == "hunyuan":
        made = HunyuanVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=heads, attention_head_dim=16, num_layers=1,
            num_single_layers=1, num_refiner_layers=1, patch_size=2, text_embed_dim=16, pooled_projection_dim=8,
            rope_axes_dim=(4, 6, 6),
        )  # fmt: skip
    else:
        made = HunyuanVideo15Transformer3DModel(
            in_channels=5, out_channels=4, num_attention_heads=heads, attention_head_dim=16, num_layers=2,
            num_refiner_layers=1, text_embed_dim=16, text_embed_2_dim=8, image_embed_dim=12, rope_axes_dim=(4, 6, 6),
        )  # fmt: skip
    made = made.eval().requires_grad_(False)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            parameter.mul_(2.0)
    return made


def inputs_of(name: str, grid: tuple[int, int, int], batch: int, timestep: float = 700.0) -> dict[str, Any]:
    t, h, w = grid
    read = (torch.arange(11)[None] < torch.tensor([4, 9])[:batch, None]).long()
    text = {"encoder_hidden_states": torch.randn(batch, 11, 16), "timestep": torch.full((batch,), timestep)}
    if name == "wan":
        return {"hidden_states": torch.randn(batch, 4, t, 2 * h, 2 * w), **text}
    if name == "hunyuan":
        more = {"pooled_projections": torch.randn(batch, 8), "guidance": torch.full((batch,), 6000.0)}
        return {"hidden_states": torch.randn(batch, 4, t, 2 * h, 2 * w), "encoder_attention_mask": read, **text, **more}
    return {
        "hidden_states": torch.randn(batch, 5, t, h, w),
        "encoder_attention_mask": read,
        "encoder_hidden_states_2": torch.randn(batch, 6, 8),
        "encoder_attention_mask_2": (torch.arange(6)[None] < torch.tensor([3, 2])[:batch, None]).long(),
        "image_embeds": torch.zeros(batch, 5, 12),
        **text,
    }


@contextmanager
def a_cpu_counts_as_accelerator() -> Iterator[None]:
    """diffusers asks which accelerator a rank has, and how many there are, before it looks at the mesh."""
    with (
        mock.patch("torch._C._get_accelerator", lambda: torch.device("cpu")),
        mock.patch("torch.accelerator.device_count", lambda: 1),
    ):
        yield


def over_ranks(model: Any, *, uneven: bool = False, ring: bool = False) -> Any:
    """The model under context parallelism over all processes."""
    size = dist.get_world_size()
    shape = (size, 1) if ring else (1, size)
    mesh = dist.device_mesh.init_device_mesh("cpu", shape, mesh_dim_names=("ring", "ulysses"))
    config = ContextParallelConfig(
        ring_degree=shape[0], ulysses_degree=shape[1], ulysses_anything=uneven, mesh=mesh
    )
    with a_cpu_counts_as_accelerator():
        model.enable_parallelism(config=config, cp_plan=context_parallel_plan(model))
    return model


def settings(**changes: Any) -> Settings:
    given = {"schedule": Schedule(((0.0, 0.3),)), "q_block": 16, "k_block": 8, **changes}
    return Settings(**given)


def run(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    return model(**inputs, return_dict=False)[0]


def compare(
    name: str, grid: tuple[int, int, int], batch: int = 1, uneven: bool = False, heads: int = HEADS,
    dtype: str = "float32", policy: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Relative L2 distance of the parallel sparse run from the one of one process, of dense likewise, and counts."""
    kind = getattr(torch, dtype)
    model = model_of(name, heads).to(kind)
    inputs = {
        key: value.to(kind) if value.is_floating_point() and key != "timestep" else value
        for key, value in inputs_of(name, grid, batch).items()
    }
    chosen = settings(policy=Policy(**(policy or {})))
    dense = run(model, inputs)
    with apply_draft_attention(model, chosen, steps=1) as handle:
        alone, alone_calls = run(model, inputs), handle.report.calls_sparse
    over_ranks(model, uneven=uneven)
    dense_ranks = run(model, inputs)
    with apply_draft_attention(model, chosen, steps=1) as handle:
        out = run(model, inputs)
        report = handle.report

    def far(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a.float() - b.float()).norm() / b.float().norm())

    return {
        "sparse": far(out, alone),
        "dense": far(dense_ranks, dense),
        "sparsity": far(alone, dense),
        "calls": (report.calls_sparse, alone_calls, report.calls_dense()),
    }
