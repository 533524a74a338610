"""The core's way to its kernels: from a call or a request to their arguments. `kernels` is imported on first use."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ....kernels.types import Geometry, Selected, Tail
from ...geometry.per_head import per_head
from ...method.draft import Draft, log_block_counts, spread_of_heads
from ...method.policy import tail_rank
from ...method.rules.call import RuleCall
from . import machine

# Plain power iterations in the kernel, where the core iterates with more rows: it takes more of them to get as close.
POWER_ITERATIONS = 6

Pair = tuple[Tensor, Tensor]
Warps = tuple["int | None", ...]


class Launch(Protocol):
    """Launches an `attend` over `selected` into `out` (B, H, L, D).

    The tail is as kernels take it (`Tail.to`), `in_order` says whether k and v hold tokens in block order already.
    Returns the warps of the binaries, None for those that Triton interprets; nothing where they do not matter.
    """

    def __call__(
        self,
        out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        geometry: Geometry,
        selected: Selected,
        tail: Tail | None,
        key_bias: Tensor | None,
        scale: float,
        in_order: bool,
    ) -> Warps: ...


def launch_pointer(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    geometry: Geometry,
    selected: Selected,
    tail: Tail | None,
    key_bias: Tensor | None,
    scale: float,
    in_order: bool,
) -> Warps:
    """`Launch` of the pointer form."""
    from ....kernels import attend_pointer, configs

    config = configs.attend_config(machine.architecture(q.device), q.shape[3], 0 if tail is None else tail.ranks)
    attend_pointer.attend_pointer(
        q, k, v, geometry, selected, tail, key_bias, scale, config, in_order=in_order, out=out
    )
    return ()


def launch_hopper(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    geometry: Geometry,
    selected: Selected,
    tail: Tail | None,
    key_bias: Tensor | None,
    scale: float,
    in_order: bool,
) -> Warps:
    """`Launch` of the warp-specialised form, which cannot gather K and V."""
    from ....kernels import attend_hopper, configs

    if not in_order:
        k, v = k.index_select(2, geometry.perm), v.index_select(2, geometry.perm)
    config = configs.hopper_config(q.shape[3], geometry.k_block, 0 if tail is None else tail.ranks)
    return attend_hopper.attend_hopper(q, k, v, geometry, selected, tail, key_bias, scale, config, out=out).warps


LAUNCHES: dict[str, Launch] = {"triton": launch_pointer, "triton_hopper": launch_hopper}
"""Name of a backend -> its form of `attend`."""


def prepare(call: RuleCall, *, copy: bool) -> tuple[Draft, Tail | None, Pair | None]:
    """Draft, tail (its products' operands in the dtype of q) and, if asked, K and V in block order."""
    from ....kernels import configs, prepare

    config, geometry = configs.prepare_config(machine.architecture(call.q.device)), call.tables.geometry
    values = call.heads
    log_weight = _log_weight(call) if call.policy.has_tail else None
    ranks = None
    if values.linear:
        used = [tail_rank(name) if name.startswith("linear") else -1 for name in values.tails]
        ranks = per_head(used, call.q.device, torch.int32)
    keys = prepare.prepare_keys(
        call.k,
        call.v,
        geometry,
        config,
        log_weight=log_weight,
        ranks=ranks,
        most_ranks=values.ranks,
        copy=copy,
        iterations=POWER_ITERATIONS,
    )
    q_mean = prepare.prepare_queries(call.q, geometry, config)
    draft = Draft(q_mean, keys.k_mean, spread_of_heads(keys.spread, values.spreads))
    return draft, keys.tail, None if keys.k is None or keys.v is None else (keys.k, keys.v)


def _log_weight(call: RuleCall) -> Tensor:
    """(H, g) float32, see `Tail.log_weight`."""
    values, tables = call.heads, call.tables
    offsets = tuple(-math.inf if name == "none" else gain for name, gain in zip(values.tails, values.gains))

    def make() -> Tensor:
        of_heads = per_head(offsets, tables.perm.device, torch.float32)
        return log_block_counts(tables, torch.float32) + of_heads[:, None]

    return tables.constant(("tail log weights", offsets), make)
