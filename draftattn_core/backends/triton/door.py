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

from ...geometry.layout import LayoutTables
from ...geometry.per_head import per_head
from ...method.draft import Draft, log_block_counts, raw_logits, spread_of_heads
from ...method.policy import Policy, head_densities, head_gains, head_tails, tail_rank
from ...method.selection import forced_blocks, forced_key
from ...method.tail.expand import Tail
from ..request import Listed

# Plain power iterations in the kernel, where the core iterates with more rows: it takes more of them to get as close.
POWER_ITERATIONS = 6


@functools.cache
def kernel_module(name: str) -> ModuleType:
    """A module of the package `kernels` beside `draftattn_core`.

    Raises:
        ImportError: if Triton is missing, or another package called `kernels` is found first.
    """
    parent = __name__.rpartition(".draftattn_core.")[0]
    module = importlib.import_module(f"{parent}.kernels.{name}")
    ours = Path(__file__).resolve().parents[3] / "kernels"
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
        log_count = _log_count(tables, policy, heads, part)
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
    return select_scores(raw_logits(draft, tables, scale), tables, policy, heads=heads, part=part)


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
    run = functools.partial(
        kernel_module("select").select,
        scores,
        forced_blocks(tables, policy),
        geometry_of(tables),
        policy.method,
        **options,
    )
    if policy.method == "draft":
        entries = rows * columns
        dropped = [int((1.0 - d) * entries) for d in densities]
        # The smallest of those kept is the largest of those dropped; with none dropped it is the smallest of all.
        counts = per_head([min(entries, entries - k + 1) for k in dropped], scores.device, torch.int32)
        return run(head_counts=counts, rescue=policy.drops)
    if policy.method == "top_p":
        floors = _row_counts(tables, policy, [math.ceil(policy.floor * d * columns) for d in densities])
        return run(row_counts=floors, top_p=policy.top_p)
    if policy.method == "row":
        return run(row_counts=_row_counts(tables, policy, [round(d * columns) for d in densities]))
    promised = [math.floor(policy.floor * d * columns) for d in densities]
    budgets = [round(d * rows * columns) for d in densities]
    return run(
        row_counts=_row_counts(tables, policy, promised),
        head_counts=_head_counts(tables, policy, promised, budgets),
    )


def _row_counts(tables: LayoutTables, policy: Policy, wanted: list[int]) -> Tensor:
    """(H, R) int32: per head at least `wanted`, at least what is forced, and one where nothing stands in for a row."""
    fewest = 1 if policy.drops else 0
    least = tuple(max(fewest, count) for count in wanted)

    def make() -> Tensor:
        counts = per_head(least, tables.perm.device, torch.int32)
        return torch.maximum(counts[:, None], forced_blocks(tables, policy).sum(-1, dtype=torch.int32))

    return tables.constant(("row counts", least, forced_key(policy)), make)


def _head_counts(tables: LayoutTables, policy: Policy, promised: list[int], budgets: list[int]) -> Tensor:
    """(H,) int32: the budget of each head, at least what its rows are promised together."""

    def make() -> Tensor:
        of_rows = _row_counts(tables, policy, promised).sum(-1, dtype=torch.int32)
        return torch.maximum(per_head(budgets, tables.perm.device, torch.int32), of_rows)

    key = ("head counts", tuple(promised), tuple(budgets), policy.drops, forced_key(policy))
    return tables.constant(key, make)


def _log_count(tables: LayoutTables, policy: Policy, heads: int, part: slice) -> Tensor:
    """(H, g) float32 of some heads, see `Tail.log_count`."""
    names, gains = head_tails(policy.tail, heads)[part], head_gains(policy.tail_gain, heads)[part]
    offsets = tuple(-math.inf if name == "none" else gain for name, gain in zip(names, gains))

    def make() -> Tensor:
        of_heads = per_head(offsets, tables.perm.device, torch.float32)
        return log_block_counts(tables, torch.float32) + of_heads[:, None]

    return tables.constant(("tail log counts", offsets), make)
