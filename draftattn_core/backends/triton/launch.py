"""The core's way to its kernels: from a call or a request to their arguments. `kernels` is imported on first use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ....kernels.types import AttendInputs, Codes, Tail
from ...geometry.per_head import per_head
from ...method.codes import key_shift
from ...method.draft import Draft, log_block_counts, spread_of_heads
from ...method.policy import tail_rank
from ...method.rules.call import RuleCall
from ...method.tail.expand import log_weights
from . import machine

# Plain power iterations in the kernel by ranks. The leading pair of tokens that move together is there to 0.1 % of its
# energy after three; the second lies in a flatter spectrum. What iterations miss stays in the average.
POWER_ITERATIONS = (0, 4, 6)

Pair = tuple[Tensor, Tensor]
Warps = tuple["int | None", ...]


def launch_pointer(inputs: AttendInputs, out: Tensor) -> Warps:
    """Launch the pointer form into `out` (B, H, L, D). Its warps do not matter."""
    from ....kernels import attend_pointer, configs

    name, ranks = machine.architecture(inputs.q.device), 0 if inputs.tail is None else inputs.tail.ranks
    config = configs.attend_config(name, inputs.q.shape[3], ranks, codes=inputs.codes is not None)
    attend_pointer.attend_pointer(inputs, config, out)
    return ()


def launch_hopper(inputs: AttendInputs, out: Tensor) -> Warps:
    """Launch the warp-specialised form, which cannot gather K and V; the warps of its binaries."""
    from ....kernels import attend_hopper, configs

    ranks = 0 if inputs.tail is None else inputs.tail.ranks
    config = configs.hopper_config(inputs.q.shape[3], inputs.geometry.k_block, ranks)
    return attend_hopper.attend_hopper(_in_order(inputs), config, out)


def launch_gluon(inputs: AttendInputs, out: Tensor) -> Warps:
    """Launch the Gluon form, which cannot gather K and V either; the warps of its binary."""
    from ....kernels import attend_gluon

    return attend_gluon.attend_gluon(_in_order(inputs), out)


def _in_order(inputs: AttendInputs) -> AttendInputs:
    """The same with K and V in block order."""
    if inputs.in_order:
        return inputs
    k, v = (x.index_select(2, inputs.geometry.perm) for x in (inputs.k, inputs.v))
    return replace(inputs, k=k, v=v, in_order=True)


LAUNCHES: dict[str, Callable[[AttendInputs, Tensor], Warps]] = {
    "triton": launch_pointer,
    "triton_hopper": launch_hopper,
    "triton_gluon": launch_gluon,
}
"""Name of a backend -> its form of `attend`."""


def prepare(call: RuleCall, *, copy: bool) -> tuple[Draft, Tail | None, Pair | None]:
    """Draft, tail (its products' operands in the dtype of q) and, if asked, K and V in block order."""
    return prepare_copies(call, copy=copy, codes=False)[:3]


def prepare_copies(
    call: RuleCall, *, copy: bool = True, codes: bool = True
) -> tuple[Draft, Tail | None, Pair | None, Codes | None, Tensor | None]:
    """`prepare`, and for heads with 8 bits (all of them or none) by what INT8 keys are read and what was subtracted
    from them and from the tail's mean keys (`AttendRequest.shift`).

    Args:
        copy: whether K and V are copied; codes: whether heads with 8 bits get theirs.
    """
    from ....kernels import configs, prepare

    architecture = machine.architecture(call.q.device)
    config, geometry = configs.prepare_config(architecture), call.tables.geometry
    values = call.heads
    shift = key_shift(call.k) if codes and 8 in values.bits else None
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
        iterations=POWER_ITERATIONS[values.ranks],
        shift=shift,
        half_sums=configs.sums_in_half(architecture) or call.policy.fp8_values,
        fp8=call.policy.fp8_values,
    )
    q_mean = prepare.prepare_queries(call.q, geometry, config)
    draft = Draft(q_mean, keys.k_mean, spread_of_heads(keys.spread, values.spreads))
    copies = None if keys.k is None or keys.v is None else (keys.k, keys.v)
    return draft, keys.tail, copies, keys.codes, shift


def _log_weight(call: RuleCall) -> Tensor:
    """(H, g) float32, see `Tail.log_weight`; kept from call to call."""
    tables, tails, gains = call.tables, call.heads.tails, call.heads.gains

    def make() -> Tensor:
        return log_weights(log_block_counts(tables, torch.float32), tails, gains)

    return tables.constant(("tail log weights", tails, gains), make)
