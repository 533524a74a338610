"""FlexAttention (torch.compile) over the kept blocks, the tail as a second pass.

Q, K and V are copied into block order with every block full (a slot without a token repeats one of its block's and is
masked as a key, thrown away as a query); kept blocks become the lists of a `BlockMask`, built on the device with fixed
shapes. Blocks with a key to hide or to bias go through the mask function, all others are taken whole; the tail is
merged by the log-sum-exp that FlexAttention returns. The CPU has neither (on_cpu.py).
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...geometry.blocks import statistics_dtype
from ...geometry.layout import LayoutTables
from ...phrase import Phrase, Text
from ..call_kind import CallKind
from ..request import AttendRequest, new_output
from ..slots import key_slot_bias, query_slots, slot_tokens
from ..tail_pass import merge_tail
from .on_cpu import fold, sink_levels, unfold

# Copies of q, k, v and the block lists of one group of heads.
_CHUNK_BYTES = 1 << 30

Flex = Callable[..., Any]


def flex_refuses(kind: CallKind) -> Text | None:
    """Why FlexAttention cannot serve a kind of call on this machine; None if it can."""
    device = kind.device.type
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 7):
        text = torch.__version__
        return Phrase("flex_torch", "FlexAttention is used from torch 2.7 on, this is {version}", version=text)
    if device not in ("cpu", "cuda", "xpu"):
        return Phrase("flex_device", "FlexAttention is used on cpu, cuda and xpu only, not on {device}", device=device)
    if kind.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return Phrase("flex_type", "FlexAttention does not compute in {dtype}", dtype=str(kind.dtype))
    if not 16 <= kind.head_dim <= 256:
        return Phrase(
            "flex_head_size", "FlexAttention takes head sizes from 16 to 256, this one is {size}", size=kind.head_dim
        )
    if device == "cpu":
        if _compiler() is None:
            return Phrase(
                "flex_compiler",
                "torch.compile needs a C++ compiler on the CPU and none was found (g++, clang++, or $CXX)",
            )
    elif kind.q_block % 64 or kind.k_block % 64:
        return Phrase(
            "flex_blocks",
            "FlexAttention needs blocks that are multiples of 64, got {blocks}",
            blocks=f"{kind.q_block}/{kind.k_block}",
        )
    elif importlib.util.find_spec("triton") is None:
        return Phrase("flex_triton", "torch.compile needs the package triton on this device")
    # Last, because asking loads the compiler's front end, which takes seconds.
    from torch._dynamo.eval_frame import is_dynamo_supported

    if not is_dynamo_supported():
        return Phrase(
            "flex_python",
            "torch.compile does not work with Python {version} on this system",
            version=sys.version.split()[0],
        )
    return None


def _compiler() -> str | None:
    names = [os.environ.get("CXX"), "cl"] if sys.platform == "win32" else [os.environ.get("CXX"), "g++", "clang++"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


@functools.cache
def _compiled() -> Flex:
    """FlexAttention compiled, once per process. `fullgraph`: where it cannot compile it raises, since the plain
    function would build the whole L x L map. A change of length does not compile anew; one of dtype, batch, heads,
    head size, blocks, tail or mask does."""
    from torch.nn.attention.flex_attention import flex_attention

    options: dict[str, Any] = {"fullgraph": True, "dynamic": True}
    # Newer versions can count our compilations apart from those of others, and allow more of them than eight.
    for name, value in (("isolate_recompiles", True), ("recompile_limit", 64)):
        if name in inspect.signature(torch.compile).parameters:
            options[name] = value
    return torch.compile(flex_attention, **options)


def _whole_blocks(tables: LayoutTables, biased: bool) -> Tensor:
    """(k blocks,) bool: blocks whose keys all count, unchanged. Made from host values, without waiting."""
    table = tables.k
    whole = torch.ones(table.total, dtype=torch.bool, device=table.counts.device)
    whole[table.video - 1] = table.bounds[table.video] - table.bounds[table.video - 1] == table.size
    if table.extra:
        whole[-1] = table.bounds[-1] - table.bounds[-2] == table.size
        if biased:
            whole[table.video :] = False
    return whole


def _lists(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Counts (B, h, R) and, first in each row, the kept blocks in ascending order (B, h, R, C); int32."""
    order = keep.int().argsort(dim=-1, descending=True, stable=True)
    return keep.sum(-1, dtype=torch.int32), order.int()


def _block_mask(whole: Tensor, masked: Tensor | None, q_size: int, k_size: int, mask: Any = None) -> Any:
    """BlockMask of some heads (B, h, R, C): `whole` blocks unmasked, the `masked` ones through the function `mask`."""
    from torch.nn.attention.flex_attention import BlockMask

    lists = _lists(whole)
    none = torch.zeros_like(lists[0]), torch.zeros_like(lists[1])
    options: dict[str, Any] = {"BLOCK_SIZE": (q_size, k_size), "mask_mod": mask}
    if "compute_q_blocks" in inspect.signature(BlockMask.from_kv_blocks).parameters:
        options["compute_q_blocks"] = False  # they serve the backward pass only
    return BlockMask.from_kv_blocks(*(none if masked is None else _lists(masked)), *lists, **options)


def _heads_at_once(request: AttendRequest, folded: bool) -> int:
    """The largest divisor of the head count whose copies and lists stay within `_CHUNK_BYTES`: one shape throughout."""
    batch, heads, length, dim = request.q.shape
    pairs = request.tables.q.total * request.tables.k.total
    copies = 8 * statistics_dtype(request.q).itemsize if folded else 4 * request.q.element_size()
    per_head = batch * (copies * length * dim + pairs * 24)
    fitting = [n for n in range(1, heads + 1) if heads % n == 0 and n * per_head <= _CHUNK_BYTES]
    return max(fitting, default=1)


def attend_flex(request: AttendRequest, flex: Flex | None = None, *, folded: bool | None = None) -> Tensor:
    """Output (B, H, L, D). The first call of a kind compiles for seconds to a minute.

    Args:
        request: what to compute.
        flex: stands in for compiled FlexAttention; None compiles it.
        folded: whether to do without functions and log-sum-exps of `flex`; None does so on the CPU.
    """
    tables = request.tables
    run = _compiled() if flex is None else flex
    folded = request.q.device.type == "cpu" if folded is None else folded
    q_tokens, k_tokens = slot_tokens(tables.q, tables.perm), slot_tokens(tables.k, tables.perm)
    bias, slots = key_slot_bias(request, torch.float32), query_slots(tables)
    whole = _whole_blocks(tables, request.key_bias is not None)
    out = new_output(request.q)
    step = _heads_at_once(request, folded)
    for start in range(0, request.q.shape[1], step):
        heads = slice(start, start + step)
        q, k, v = (
            x[:, heads].index_select(2, tokens)
            for x, tokens in ((request.q, q_tokens), (request.k, k_tokens), (request.v, k_tokens))
        )
        tail = None if request.tail is None else request.tail.of_heads(heads)
        part = replace(request, q=q, k=k, v=v, keep=request.keep[:, heads], tail=tail, counts=None)
        rows, lse = _attend_folded(run, part, bias) if folded else _attend_masked(run, part, bias, whole)
        if lse is not None:
            merge_tail(rows, lse, q, part)
        out[:, heads] = rows.index_select(2, slots)
    return out


def _attend_masked(run: Flex, part: AttendRequest, bias: Tensor, whole: Tensor) -> tuple[Tensor, Tensor | None]:
    """Rows (B, h, q slots, D) over the kept blocks and, where there is a tail, their log-sum-exp.

    Args:
        part: a request for some heads whose q, k and v are slots in block order.
        bias: (B, k slots), see `key_slot_bias`.
        whole: see `_whole_blocks`.
    """

    def counts(b: Tensor, h: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
        return bias[b, k_index] > -torch.inf

    def biased(score: Tensor, b: Tensor, h: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
        return score + bias[b, k_index]

    sizes = part.tables.q.size, part.tables.k.size
    mask = _block_mask(part.keep & whole, part.keep & ~whole, *sizes, counts)
    options: dict[str, Any] = {"block_mask": mask, "scale": part.scale, "kernel_options": _tiles(part)}
    if part.key_bias is not None:
        options["score_mod"] = biased
    if part.tail is None:
        return run(part.q, part.k, part.v, **options), None
    return _with_lse(run, part.q, part.k, part.v, options)


def _attend_folded(run: Flex, part: AttendRequest, bias: Tensor) -> tuple[Tensor, Tensor | None]:
    """`_attend_masked` for the CPU, in float32 whatever the input dtype."""
    tables, dtype = part.tables, statistics_dtype(part.q)
    q, k, v = part.q.to(dtype) * part.scale, part.k.to(dtype), part.v.to(dtype)
    keep, levels = part.keep, None
    if part.tail is not None:
        levels = sink_levels(q, part.tail)
        keep = pad(keep, (0, 1), value=True)
    mask = _block_mask(keep, None, tables.q.size, tables.k.size)
    rows = run(*fold(q, k, v, bias, levels, tables.k.size), block_mask=mask, scale=1.0)
    return (rows, None) if levels is None else unfold(rows, levels)


def _tiles(request: AttendRequest) -> dict[str, int] | None:
    """Tile sizes where the kernel's own would not divide our blocks."""
    q_size, k_size, dim = request.tables.q.size, request.tables.k.size, request.q.shape[-1]
    if request.q.dtype == torch.float32 or dim > 128:
        return None
    tiles = {}
    if q_size % 128:
        tiles["BLOCK_M"] = 64
    if k_size % 128:
        tiles["BLOCK_N"] = 64
    return tiles or None


def _with_lse(run: Flex, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Output and natural log-sum-exp, under the name this version of torch has for it."""
    from torch.nn.attention import flex_attention as module

    if hasattr(module, "AuxRequest"):
        rows, aux = run(q, k, v, return_aux=module.AuxRequest(lse=True), **options)
        return rows, aux.lse
    rows, lse = run(q, k, v, return_lse=True, **options)
    return rows, lse
