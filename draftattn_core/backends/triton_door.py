"""The door to `kernels`: finds the package beside this one and translates the core's objects into its arguments.

`kernels` (and with it Triton) is imported on first use only, under the name this package's own parent has: the pack
may be loaded under any name, and another installed package may be called `kernels` too.
"""

from __future__ import annotations

import functools
import importlib
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..draft import Draft, draft_logits, spread_of_heads
from ..layout import LayoutTables
from ..policy import Policy, head_densities, head_tails, tail_rank
from ..selection import forced_blocks
from ..tail import Tail, log_counts
from ..transfer import per_head
from .request import Listed

# Plain power iterations in the kernel, where the core iterates with more rows: it takes more of them to get as close.
POWER_ITERATIONS = 6


@functools.cache
def kernel_module(name: str) -> ModuleType:
    """A module of the package `kernels` beside `draftattn_core`.

    Raises:
        ImportError: if Triton is missing, or another package called `kernels` is found first.
    """
    parent = __name__.split(".")[:-3]
    module = importlib.import_module(".".join([*parent, "kernels", name]))
    ours = Path(__file__).resolve().parents[2] / "kernels"
    if Path(str(module.__file__)).resolve().parent != ours:
        raise ImportError(f"another package called kernels ({module.__file__}) is found before the pack's own")
    return module


def interpreted() -> bool:
    """Whether Triton interprets its kernels (TRITON_INTERPRET): they then run on CPU tensors, for tests."""
    runtime, pointer = kernel_module("runtime"), kernel_module("attend_pointer")
    return bool(runtime.interpreted(pointer.attend_kernel))


def runs_on(x: Tensor) -> bool:
    """Whether kernels can run where x is."""
    if x.device.type == "cuda":
        return True
    try:
        return interpreted()
    except Exception:
        # Whatever a Triton that is missing or broken raises.
        return False


def architecture(device: torch.device) -> str:
    """The device's row in the configuration table."""
    if device.type != "cuda":
        return "sm_80"
    gcn = torch.cuda.get_device_properties(device).gcnArchName if torch.version.hip else None
    name: str = kernel_module("configs").architecture_of(torch.cuda.get_device_capability(device), gcn)
    return name


def geometry(tokens: int, video_tokens: int, q_block: int, k_block: int, perm: Tensor) -> Any:
    """`kernels.geometry.Geometry` of a call."""
    return kernel_module("geometry").Geometry(tokens, video_tokens, q_block, k_block, perm)


def geometry_of(tables: LayoutTables) -> Any:
    layout = tables.layout
    return geometry(layout.tokens, layout.grid.tokens, layout.q_block, layout.k_block, tables.perm)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shape: Any,
    listed: Listed,
    tail: Tail | None,
    key_bias: Tensor | None,
    scale: float,
    in_order: bool,
    out: Tensor,
) -> None:
    """Launch `attend` into `out`."""
    pooled = None
    if tail is not None:
        pooled_type = kernel_module("pooled").PooledTail
        pooled = pooled_type(tail.log_count, tail.k_mean, tail.v_mean, tail.cov, tail.u, tail.w).to(q.dtype)
    config = kernel_module("configs").attend_config(
        architecture(q.device), q.shape[3], 0 if tail is None else tail.ranks
    )
    kernel_module("attend_pointer").attend_pointer(
        q, k, v, shape, *listed, pooled, key_bias, scale, config, in_order=in_order, out=out
    )


def listed(selected: Any) -> Listed:
    """A `kernels.select.Selected` as kernels walk it."""
    return Listed(selected.lists, selected.counts, selected.words)


def listed_of(keep: Tensor) -> Listed:
    """The same of a map (B, H, q blocks, k blocks) bool that was made elsewhere."""
    return listed(kernel_module("select").lists_of(keep))


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: LayoutTables,
    policy: Policy,
    *,
    copy: bool,
    part: slice = slice(None),
) -> tuple[Draft, Tail | None, tuple[Tensor, Tensor] | None]:
    """Draft, tail (its products' operands in the dtype of q) and, if asked, K and V in block order.

    `part` names the heads that are wanted; q, k, v and the policy are those of all.
    """
    module, config = kernel_module("prepare"), kernel_module("configs").prepare_config(architecture(q.device))
    shape, heads, device = geometry_of(tables), q.shape[1], q.device
    names = head_tails(policy.tail, heads)
    log_count = ranks = None
    if policy.has_tail:
        drops = per_head([name == "none" for name in names[part]], device, torch.bool)
        counts = log_counts(tables.k.counts[: tables.k.video], policy.tail_gain, heads)[part]
        log_count = counts.masked_fill(drops[:, None], -torch.inf).contiguous()
    if any(name.startswith("linear") for name in names):
        used = [tail_rank(name) if name.startswith("linear") else -1 for name in names[part]]
        ranks = per_head(used, device, torch.int32)
    keys = module.prepare_keys(
        k[:, part],
        v[:, part],
        shape,
        config,
        log_count=log_count,
        ranks=ranks,
        most_ranks=max(tail_rank(name) for name in names),
        copy=copy,
        iterations=POWER_ITERATIONS,
    )
    q_mean = module.prepare_queries(q[:, part], shape, config)
    draft = Draft(q_mean, keys.k_mean, spread_of_heads(keys.spread, policy.spreads(heads)[part]))
    tail = None
    if keys.tail is not None:
        x = keys.tail
        tail = Tail(x.log_count, x.k_mean, x.v_mean, x.cov, x.u, x.w)
    return draft, tail, (keys.k, keys.v) if copy else None


def select(
    draft: Draft,
    tables: LayoutTables,
    policy: Policy,
    scale: float,
    *,
    heads: int | None = None,
    part: slice = slice(None),
) -> Any:
    """`kernels.select.Selected` of a call: what `select_from_draft` keeps; of `part` of `heads` if `draft` is."""
    return select_scores(draft_logits(draft, tables, scale), tables, policy, heads=heads, part=part)


def select_scores(
    scores: Tensor,
    tables: LayoutTables,
    policy: Policy,
    *,
    heads: int | None = None,
    part: slice = slice(None),
    **options: int,
) -> Any:
    """`select_blocks` by kernels, extra blocks and lists included. The same budgets, floors and promises."""
    rows, columns = scores.shape[2:]
    densities = head_densities(policy.density, scores.shape[1] if heads is None else heads)[part]
    forced, device = forced_blocks(tables, policy), scores.device
    run = functools.partial(
        kernel_module("select").select, scores, forced, geometry_of(tables), policy.method, **options
    )
    fewest = 1 if policy.drops else 0

    def integers(values: list[int]) -> Tensor:
        return per_head(values, device, torch.int32)

    def least(wanted: list[int]) -> Tensor:
        counts = integers([max(fewest, count) for count in wanted])
        return torch.maximum(counts[:, None], forced.sum(-1, dtype=torch.int32)).contiguous()

    if policy.method == "draft":
        entries = rows * columns
        dropped = [int((1.0 - d) * entries) for d in densities]
        # The smallest of those kept is the largest of those dropped; with none dropped it is the smallest of all.
        return run(head_counts=integers([min(entries, entries - k + 1) for k in dropped]), rescue=policy.drops)
    if policy.method == "top_p":
        return run(row_counts=least([math.ceil(policy.floor * d * columns) for d in densities]), top_p=policy.top_p)
    if policy.method == "row":
        return run(row_counts=least([round(d * columns) for d in densities]))
    promised = least([math.floor(policy.floor * d * columns) for d in densities])
    budgets = torch.maximum(
        integers([round(d * rows * columns) for d in densities]), promised.sum(-1, dtype=torch.int32)
    )
    return run(row_counts=promised, head_counts=budgets)
