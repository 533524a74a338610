"""Off the CPU nothing before a backend's own work waits for the device: meta tensors have no values to read back."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention
from torch import Tensor

from draftattention.draftattn_core.attention import Attention
from draftattention.draftattn_core.backends.flex.attend import attend_flex
from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.geometry.layout import build_tables
from draftattention.draftattn_core.geometry.per_head import per_head
from draftattention.draftattn_core.method.draft import make_draft
from draftattention.draftattn_core.method.policy import TAILS, Policy
from draftattention.draftattn_core.method.selection import select_from_draft
from draftattention.draftattn_core.method.tail.expand import make_tail
from tests.core.cases import RANKED, make_request, small_layout, smooth_qkv

LAYOUT = small_layout((3, 5, 7), 2, 9)


def on_meta(x: Any) -> Any:
    """A dataclass with all its tensors on the meta device: a read-back raises instead of waiting."""
    if isinstance(x, Tensor):
        return x.to("meta")
    if is_dataclass(x) and not isinstance(x, type):
        return replace(x, **{field.name: on_meta(getattr(x, field.name)) for field in fields(x) if field.init})
    return x


def test_the_meta_device_catches_a_read_back() -> None:
    counts = torch.zeros(3, dtype=torch.bool, device="meta")
    for read in (
        counts.nonzero,
        counts.tolist,
        lambda: bool(counts.any()),
        lambda: torch.ones(3, device="meta")[counts],
    ):
        with pytest.raises((NotImplementedError, RuntimeError)):
            read()


@pytest.mark.parametrize("method", RANKED)
@pytest.mark.parametrize("density", [0.3, (0.1, 0.5)])
def test_draft_and_selection_read_nothing_back(method: str, density: Any) -> None:
    tables = on_meta(build_tables(LAYOUT))
    q, k, _ = (x.to("meta") for x in smooth_qkv(LAYOUT, batch=2))
    policy = Policy(density=density, method=method, tail="none", keep_first_frame=True)  # type: ignore[arg-type]
    keep = select_from_draft(make_draft(q, k, tables, spread=True), tables, policy, 0.25)
    assert keep.device.type == "meta"
    assert keep.shape == (2, 2, tables.q.total, tables.k.total)


@pytest.mark.parametrize("tail", [*TAILS, ("mean", "linear2"), ("none", "linear1")])
def test_the_tail_reads_nothing_back(tail: Any) -> None:
    tables = on_meta(build_tables(LAYOUT))
    _, k, v = (x.to("meta") for x in smooth_qkv(LAYOUT, batch=2))
    made = make_tail(k, v, tables, tail)
    assert made is None or made.v_mean.device.type == "meta"


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("biased", [False, True])
def test_block_lists_and_the_second_pass_read_nothing_back(tail: Any, biased: bool) -> None:
    q, k, v = smooth_qkv(LAYOUT, dtype=torch.float32)
    bias = torch.zeros(1, LAYOUT.extra) if biased else None
    request: AttendRequest = on_meta(make_request(q, k, v, LAYOUT, Policy(density=0.3, tail=tail), bias))

    def flex(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
        out = torch.empty_like(q)
        aux = torch.nn.attention.flex_attention.AuxOutput(lse=q.new_empty(q.shape[:-1]))
        return (out, aux) if "return_aux" in options else out

    assert attend_flex(request, flex).shape == q.shape


def test_counting_a_call_reads_nothing_back() -> None:
    q, k, v = smooth_qkv(LAYOUT)
    request = on_meta(make_request(q, k, v, LAYOUT, Policy()))
    density = Attention(request.q, request, "torch").density()
    assert density.device.type == "meta"
    assert density.dtype == torch.float32


def test_per_head_values_arrive_as_given() -> None:
    cpu = torch.device("cpu")
    assert per_head([2, 2, 2], cpu, torch.int64).tolist() == [2, 2, 2]
    assert per_head([1, 2, 3], cpu, torch.int64).tolist() == [1, 2, 3]
    assert per_head([True, False], cpu, torch.bool).tolist() == [True, False]
