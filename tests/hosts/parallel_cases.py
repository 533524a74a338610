"""What each process of `test_parallel` does: a tiny model, once alone and once over all ranks."""

from __future__ import annotations

import contextlib
import io
import os
import time
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
    SkyReelsV2Transformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from diffusers.hooks import context_parallel
from diffusers.models._modeling_parallel import gather_size_by_comm

from draftattention.draftattn_core import Policy, Schedule, Settings
from draftattention.draftattn_core.hosts.diffusers.apply import apply_draft_attention
from draftattention.draftattn_core.hosts.diffusers.parallel import HeadExchange, context_parallel_plan
from draftattention.draftattn_core.run.ranks.lost import RankLostError
from draftattention.draftattn_core.run.step_cache import StepCacheSettings

HEADS = 4


def model_of(name: str, heads: int = HEADS) -> Any:
    torch.manual_seed(0)
    wan: dict[str, Any] = {
        "num_attention_heads": heads, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "text_dim": 16,
        "freq_dim": 32, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32,
    }  # fmt: skip
    made: Any
    if name == "wan":
        made = WanTransformer3DModel(**wan)
    elif name == "vace":
        made = WanVACETransformer3DModel(**wan, vace_layers=[0, 1], vace_in_channels=6)
    elif name.startswith("skyreels"):
        made = SkyReelsV2Transformer3DModel(**wan)
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
    latent = {"hidden_states": torch.randn(batch, 4, t, 2 * h, 2 * w)}
    if name in ("wan", "skyreels"):
        return {**latent, **text}
    if name == "vace":
        return {**latent, **text, "control_hidden_states": torch.randn(batch, 6, t, 2 * h, 2 * w)}
    if name == "skyreels forcing":
        levels = torch.linspace(timestep, 0.0, t).expand(batch, t)
        return {**latent, **text, "timestep": levels, "enable_diffusion_forcing": True}
    if name == "hunyuan":
        more = {"pooled_projections": torch.randn(batch, 8), "guidance": torch.full((batch,), 6000.0)}
        return {**latent, "encoder_attention_mask": read, **text, **more}
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


def gather_uneven(tensor: torch.Tensor, dim: int, group: Any) -> torch.Tensor:
    """What NCCL does when ranks hold parts of unequal size; gloo refuses, so diffusers' uneven splits end there."""
    sizes = gather_size_by_comm(tensor.shape[dim], group)
    padded = tensor.new_zeros([max(sizes) if i == dim else n for i, n in enumerate(tensor.shape)])
    padded.narrow(dim, 0, tensor.shape[dim]).copy_(tensor)
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part.narrow(dim, 0, size) for part, size in zip(parts, sizes, strict=True)], dim)


context_parallel._all_gather_anything = gather_uneven


def over_ranks(model: Any, *, uneven: bool = False, ring: bool = False) -> Any:
    """The model under context parallelism over all processes."""
    size = dist.get_world_size()
    shape = (size, 1) if ring else (1, size)
    mesh = dist.device_mesh.init_device_mesh("cpu", shape, mesh_dim_names=("ring", "ulysses"))
    config = ContextParallelConfig(ring_degree=shape[0], ulysses_degree=shape[1], ulysses_anything=uneven, mesh=mesh)
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
        key: value.to(kind) if key != "timestep" and getattr(value, "is_floating_point", bool)() else value
        for key, value in inputs_of(name, grid, batch).items()
    }
    chosen = settings(policy=Policy(**(policy or {})))
    dense = run(model, inputs)
    with apply_draft_attention(model, chosen, steps=1) as handle:
        alone, alone_calls = run(model, inputs), handle.report.calls_sparse
    over_ranks(model, uneven=uneven)
    # Without ours, diffusers would pair HunyuanVideo's mask with tokens in the order of the exchange.
    with apply_draft_attention(model, settings(schedule=Schedule(((0.0, 1.0),))), steps=1):
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


def refusal(heads: int = HEADS, ring: bool = False, late: bool = False) -> str:
    """What draft attention says to a parallelism that it cannot serve, asked before (`late`) or after it is there."""
    model, inputs = model_of("wan", heads), inputs_of("wan", (2, 6, 8), 1)
    try:
        if late:
            with apply_draft_attention(model, settings(), steps=1):
                run(over_ranks(model, ring=ring), inputs)
        else:
            apply_draft_attention(over_ranks(model, ring=ring), settings(), steps=1)
    except ValueError as error:
        return str(error)
    return "nothing was refused"


def sampled(model: Any, grid: tuple[int, int, int], handle_of: Any, steps: int = 8, meddle: Any = None) -> Any:
    """An Euler run with guidance, two calls a step; the last latent and the report."""
    torch.manual_seed(1)
    inputs = inputs_of("wan", grid, 1)
    x, condition = inputs["hidden_states"], inputs["encoder_hidden_states"]
    texts = condition, torch.zeros_like(condition)
    levels = torch.linspace(1.0, 0.0, steps + 1)
    with handle_of(timesteps=(1000.0 * levels[:-1]).tolist()) as handle:
        for step in range(steps):
            if meddle is not None:
                meddle(handle, step)
            cond, uncond = (
                run(model, {"hidden_states": x, "timestep": 1000.0 * levels[step, None], "encoder_hidden_states": text})
                for text in texts
            )
            x = x + (levels[step + 1] - levels[step]) * (uncond + 3.0 * (cond - uncond))
        report = handle.finish_run()
    return x, report


def story(report: Any) -> dict[str, Any]:
    """What a report says, times aside."""
    told = report.to_dict()
    for timed in ("attention_seconds", "step_seconds", "total_seconds", "work"):
        del told[timed]
    told["decisions"] = [(d.index, str(d.outcome), str(d.reason), d.estimate, d.error) for d in report.decisions]
    return told


def recorded(model: Any, steps: int = 8, **changes: Any) -> Any:
    """The run that recorded a profile."""
    runs: list[Any] = []
    chosen = settings(record=True, **changes)
    sampled(
        model, (2, 6, 8), lambda **more: apply_draft_attention(model, chosen, **more),
        steps, lambda handle, step: runs.append(handle),
    )  # fmt: skip
    return runs[-1].run


def record_both_ways() -> dict[str, Any]:
    """What the same run records by one process and over all ranks, as lists; and what a dense run over ranks says when
    it is asked for masks."""
    model = model_of("wan")
    alone = recorded(model).profile()
    over_ranks(model)
    run = recorded(model)
    voting = recorded(model, steps=2, record_masks=True, schedule=Schedule(((0.0, 1.0),)))

    def tables(profile: Any) -> dict[str, Any]:
        return {name: table.tolist() for name, table in profile.figures("main").tensors().items()}

    return {
        "alone": tables(alone),
        "ranks": tables(run.profile()),
        "masks": voting.calibration() is not None,
        "notes": list(voting.report.notes),
    }


def sample_both_ways(
    grid: tuple[int, int, int] = (2, 6, 8), profiled: bool = False, schedule: Any = None, **changes: Any
) -> dict[str, Any]:
    """The same run by one process and by all ranks; `profiled` with a profile of a run before it."""
    skip = changes.pop("skip", None)
    if skip is not None:
        changes["skip"] = StepCacheSettings(**skip)
    if schedule is not None:
        changes["schedule"] = Schedule(**schedule)
    model = model_of("wan")
    if profiled:
        changes["profile"] = recorded(model).profile()
    chosen = settings(**changes)
    alone, alone_report = sampled(model, grid, lambda **more: apply_draft_attention(model, chosen, **more))
    over_ranks(model)
    orders: set[Any] = set()
    plain = HeadExchange.heads_here

    def heads_here(self: Any, heads: int, order: Any) -> Any:
        orders.add(order)
        return plain(self, heads, order)

    with mock.patch.object(HeadExchange, "heads_here", heads_here):
        out, report = sampled(model, grid, lambda **more: apply_draft_attention(model, chosen, **more))
    return {
        "orders": orders - {None},
        "distance": float((out - alone).norm() / alone.norm()),
        "alone": story(alone_report),
        "ranks": story(report),
        "sum": out.double().sum().item(),
    }


def sample_with_fault(fault: str) -> dict[str, Any]:
    """A run over ranks in which something fails on rank 1 alone, in the third step."""
    from draftattention.draftattn_core.run import sparse_calls

    model = over_ranks(model_of("wan"))
    errors = {"error": ValueError("planted"), "memory": torch.OutOfMemoryError("planted")}

    def meddle(handle: Any, step: int) -> None:
        if dist.get_rank() != 1 or step != 2:
            return
        if fault == "reading":
            handle._read = fail_once(handle._read, ValueError("planted"))
        elif fault == "cache":
            cache = handle.run.step_cache
            cache._decide = fail_once(cache._decide, ValueError("planted"))
        elif fault == "history":
            # Where it would skip, this rank has nothing to predict from, once.
            handle.run.step_cache._predict = once(handle.run.step_cache._predict, None)
        elif fault == "store":
            cache = handle.run.step_cache
            cache._learn = fail_once(cache._learn, ValueError("planted"))
        else:
            sparse_calls.attend = fail_once(sparse_calls.attend, errors[fault])

    before = sparse_calls.attend
    skip = StepCacheSettings("easycache", threshold=2.0, first=1)
    chosen = settings(skip=skip) if fault in ("cache", "store", "history") else settings()
    try:
        out, report = sampled(
            model, (2, 6, 8), lambda **more: apply_draft_attention(model, chosen, **more), meddle=meddle
        )
    finally:
        sparse_calls.attend = before
    told = story(report)
    return {"sum": out.double().sum().item(), "dense": told["calls_dense"], "calls": told["calls"], "told": told}


def once(function: Any, answer: Any) -> Any:
    """`function`, which says `answer` the first time."""
    left = [answer]
    return lambda *args, **kwargs: left.pop() if left else function(*args, **kwargs)


def fail_once(function: Any, error: Exception) -> Any:
    left = [error]

    def act(*args: Any, **kwargs: Any) -> Any:
        if left:
            raise left.pop()
        return function(*args, **kwargs)

    return act


def end_in_silence(rank: int, how: str, timeout: float) -> str:
    """What the others say when `rank` says nothing for a while ("sleep"), or is gone before a step ("exit") or in the
    middle of an exchange of diffusers' ("exchange")."""
    from diffusers.models import attention_dispatch

    model = over_ranks(model_of("wan"))

    def meddle(handle: Any, step: int) -> None:
        if dist.get_rank() == rank and step == 2:
            if how == "exit":
                os._exit(1)
            if how == "exchange":
                attention_dispatch._all_to_all_single = lambda *_: os._exit(1)
            else:
                time.sleep(2 * timeout)

    begun = time.perf_counter()
    try:
        sampled(
            model,
            (2, 6, 8),
            lambda **more: apply_draft_attention(model, settings(), rank_timeout=timeout, **more),
            meddle=meddle,
        )
    except RankLostError as error:
        waited = time.perf_counter() - begun
        return f"{error} ({'in time' if waited < 5 * timeout else f'after {waited:.0f} s'})"
    return "the run went on"


def bench_row() -> str:
    """What a rank of the bench prints, in the process group that is there."""
    from benchmarks import ranks

    printed = io.StringIO()
    with (
        mock.patch.object(dist, "init_process_group"),
        mock.patch.object(dist, "destroy_process_group"),
        contextlib.redirect_stdout(printed),
    ):
        ranks.child(ranks.Shape(2, 16, 1, (3, 16, 16)), "cpu", 0.3, 1)
    return printed.getvalue()
