"""What holds for every rule that is not a ranking of the draft: no wait, no empty row, any tail, any backend."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from draftattention.draftattn_core.attention import attend
from draftattention.draftattn_core.geometry.layout import Layout, build_tables
from draftattention.draftattn_core.method.calibatt.displacement import DisplacementMask
from draftattention.draftattn_core.method.calibatt.portable import PortableVolume
from draftattention.draftattn_core.method.policy import METHODS, Policy
from draftattention.draftattn_core.method.rules import rule_of
from draftattention.draftattn_core.method.rules.calibatt import Portable
from draftattention.draftattn_core.method.rules.call import RuleCall
from tests.core.cases import RANKED, relative
from tests.core.rule_cases import Place, layout_of, rule_call, some_bias
from tests.core.test_device import on_meta

# CalibAtt's masks are not made from the call: see test_rules_calibatt and test_calibatt_recorder.
PUBLISHED = tuple(name for name in METHODS if name not in (*RANKED, "calibatt"))
LAYOUT = layout_of((3, 5, 7), 4, 9)


def policy_of(method: str, **values: object) -> Policy:
    """`tail_error` asks for a tail; the others are tried without one, where an empty row would be no number."""
    tail = "linear1" if method == "tail_error" else "none"
    return Policy(**{"method": method, "tail": tail, "density": 0.3, **values})  # type: ignore[arg-type]


def ordered(call: RuleCall) -> RuleCall:
    """The call as `select` sees it."""
    order = rule_of(call.policy.method).order
    found = None if order is None else order(call)
    return call if found is None else call.reordered(found)


def test_the_rules_of_other_papers_are_in_the_table() -> None:
    assert set(PUBLISHED) == {"svg", "radial", "adaspa", "ear", "tail_error"}


@pytest.mark.parametrize("density", [0.3, (0.1, 0.5, 0.2)])
@pytest.mark.parametrize("method", PUBLISHED)
def test_they_read_nothing_back(method: str, density: object) -> None:
    call = rule_call(LAYOUT, policy_of(method, density=density), key_bias=some_bias(LAYOUT), position=Place(1, 0.7, 2))
    tables = on_meta(call.tables)
    q, k, v = (x.to("meta") for x in (call.q, call.k, call.v))
    assert call.key_bias is not None
    meta = replace(call, q=q, k=k, v=v, tables=tables, key_bias=call.key_bias.to("meta"), state={})
    keep = rule_of(method).select(ordered(meta))
    assert keep.device.type == "meta"
    assert keep.shape == (2, 3, tables.q.total, tables.k.total)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", [LAYOUT, layout_of((5, 4, 6)), layout_of((1, 3, 5), 0, 2)], ids=str)
@pytest.mark.parametrize("method", PUBLISHED)
def test_no_row_is_empty_and_extra_tokens_are_always_kept(method: str, layout: Layout, dtype: torch.dtype) -> None:
    for density in (0.01, 0.3, 1.0):
        call = rule_call(layout, policy_of(method, density=density), dtype=dtype)
        keep, tables = rule_of(method).select(ordered(call)), call.tables
        assert keep.dtype == torch.bool and keep[..., : tables.k.video].any(-1).all()
        assert keep[:, :, tables.q.video :].all() and keep[..., tables.k.video :].all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", PUBLISHED)
def test_inputs_that_are_not_numbers_give_a_usable_selection(method: str, bad: float) -> None:
    for where in ("one key", "one query", "everything"):
        call = rule_call(LAYOUT, policy_of(method, density=0.2), dtype=torch.float32)
        if where == "one key":
            call.k[0, 0, 50] = bad
        elif where == "one query":
            call.q[0, 0, 50, 3] = bad
        else:
            call.k.fill_(bad)
        keep = rule_of(method).select(ordered(call))
        assert keep[..., : call.tables.k.video].any(-1).all()


@pytest.mark.parametrize("tail", ["none", "mean", "linear1"])
@pytest.mark.parametrize("method", PUBLISHED)
def test_they_are_computed_alike_by_every_backend_with_any_tail(method: str, tail: str) -> None:
    if (method, tail) == ("tail_error", "none"):
        return
    call = rule_call(LAYOUT, key_bias=some_bias(LAYOUT))
    found = {
        backend: attend(
            call.q,
            call.k,
            call.v,
            LAYOUT,
            policy_of(method, tail=tail),
            backend=backend,
            key_bias=call.key_bias,
            scale=call.scale,
            position=Place(3, 0.4, 1),
        )
        for backend in ("reference", "torch")
    }
    assert torch.equal(found["reference"].request.keep, found["torch"].request.keep)
    assert relative(found["torch"].out, found["reference"].out) < 1e-11


@pytest.mark.parametrize("method", PUBLISHED)
def test_they_keep_everything_at_density_1(method: str) -> None:
    call = rule_call(layout_of((3, 6, 8)), policy_of(method, density=1.0))
    keep = rule_of(method).select(ordered(call))
    assert keep.all()


def test_the_selection_of_one_table_does_not_depend_on_who_came_before() -> None:
    tables = build_tables(LAYOUT)
    for method in PUBLISHED:
        for density in (0.2, 0.6, 0.2):
            call = rule_call(LAYOUT, policy_of(method, density=density))
            shared = rule_of(method).select(ordered(replace(call, tables=tables)))
            assert torch.equal(shared, rule_of(method).select(ordered(call)))


@pytest.mark.parametrize("kind", ["scores", "set"])
def test_portable_masks_read_nothing_back_either(kind: str) -> None:
    call = rule_call(LAYOUT, Policy(density=0.3), position=Place())
    zeros, seen = torch.zeros(3, 3, 3, 3), torch.ones(3, 3, 3, dtype=torch.bool)
    cell = (1.0, 2.0, 4.0)
    mask = (
        PortableVolume(cell, zeros.half(), seen, LAYOUT.grid)
        if kind == "scores"
        else DisplacementMask(cell, zeros > 0, torch.tensor([True, False, False]))
    )
    found = Portable({(0, 0): mask})
    meta = replace(call, **{name: getattr(call, name).to("meta") for name in "qkv"}, tables=on_meta(call.tables))
    assert found.select(meta).device.type == "meta"
    assert found.select(meta).shape == found.select(replace(call, state={})).shape
