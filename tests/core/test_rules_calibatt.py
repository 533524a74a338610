"""CalibAtt as a rule: masks from a calibration, refused where they do not fit, and portable masks that always do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from draftattention.draftattn_core.attention import attend
from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout
from draftattention.draftattn_core.method import rules
from draftattention.draftattn_core.method.calibatt.displacement import DisplacementMask
from draftattention.draftattn_core.method.calibatt.intervals import Intervals, intervals_of
from draftattention.draftattn_core.method.calibatt.portable import PortableVolume
from draftattention.draftattn_core.method.calibatt.repetition import anchor_work, attend_anchors
from draftattention.draftattn_core.method.policy import Policy
from draftattention.draftattn_core.method.rules.calibatt import Calibrated, Portable
from draftattention.draftattn_core.method.selection import select_blocks
from tests.core.rule_cases import Place, layout_of, rule_call, some_bias, with_policy

LAYOUT = layout_of((3, 5, 7), 5, 12)


def masks(seed: int, layout: Layout = LAYOUT) -> torch.Tensor:
    tables = rule_call(layout).tables
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, tables.q.video, tables.k.video, generator=generator) < 0.4


def calibrated() -> Calibrated:
    late = intervals_of(masks(1))
    lists: dict[tuple[int, int], Intervals] = {(0, 0): intervals_of(masks(0)), (1, 0): late, (2, 0): late}
    return Calibrated(LAYOUT, 3, lists, {(1, 0): (False, True, True)}, anchors=2)


def test_a_call_keeps_the_mask_of_its_step_and_layer_and_all_extra_blocks() -> None:
    for step, seed in ((0, 0), (1, 1), (2, 1)):
        call = rule_call(LAYOUT, position=Place(step))
        rows, columns = call.tables.q.video, call.tables.k.video
        keep = calibrated().select(call)
        assert keep.shape == (2, 3, call.tables.q.total, call.tables.k.total)
        assert torch.equal(keep[:, :, :rows, :columns], masks(seed).expand(2, -1, -1, -1))
        assert keep[:, :, rows:].all() and keep[:, :, :, columns:].all()


Ask = Callable[[Calibrated | Portable], str]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Puts masks into the table of rules; a policy asks for them by the name returned."""

    def put(masks: Calibrated | Portable) -> str:
        monkeypatch.setitem(rules.RULES, "new", "new:RULE")
        module = SimpleNamespace(RULE=masks.rule())
        monkeypatch.setitem(sys.modules, f"{rules.__name__}.new", module)  # type: ignore[arg-type]
        return "new"

    return put


@pytest.mark.parametrize("flags", [(False, True, True), (True, False, True), (True, True, True), (False, False, False)])
def test_repetition_heads_are_answered_from_their_anchors_and_the_others_by_their_lists(
    ask: Ask, flags: tuple[bool, ...]
) -> None:
    found = replace(calibrated(), repetition={(1, 0): flags})
    call = rule_call(LAYOUT, key_bias=some_bias(LAYOUT))
    policy = Policy(method=ask(found), tail="none")
    result = attend(
        call.q,
        call.k,
        call.v,
        LAYOUT,
        policy,
        backend="reference",
        key_bias=call.key_bias,
        scale=call.scale,
        position=Place(1),
    )
    keep = found.select(replace(call, position=Place(1)))
    by_lists = attend_reference(
        AttendRequest(call.q, call.k, call.v, call.tables, keep, None, call.key_bias, call.scale)
    )
    anchors = attend_anchors(call.q, call.k, call.v, call.tables, call.scale, key_bias=call.key_bias, anchors=2)
    for head, repeats in enumerate(flags):
        expected = anchors[:, head] if repeats else by_lists[:, head]
        torch.testing.assert_close(result.out[:, head], expected, rtol=1e-12, atol=1e-13)
        if repeats:
            share = float(result.computed_pairs()[0, head]) / LAYOUT.tokens**2
            assert share == pytest.approx(anchor_work(call.tables, 2), abs=0.5 / call.tables.q.total)
        else:
            assert torch.equal(result.request.keep[:, head], keep[:, head])


def test_steps_that_share_a_list_pay_for_it_once_and_go_on_sharing_on_a_device() -> None:
    found = calibrated()
    assert found.bytes == found.lists[0, 0].bytes + found.lists[1, 0].bytes
    moved = found.to("cpu")
    assert moved.lists[1, 0] is moved.lists[2, 0] and moved.bytes == found.bytes


@pytest.mark.parametrize(
    "layout, place, heads, advice",
    [
        (replace(LAYOUT, grid=TokenGrid(3, 5, 8)), Place(), 3, "portable masks"),
        (replace(LAYOUT, order="hilbert"), Place(), 3, "use that order and blocks"),
        (replace(LAYOUT, k_block=16), Place(), 3, "use that order and blocks"),
        (LAYOUT, Place(3), 3, "runs of 3 steps"),
        (LAYOUT, Place(0, layer=1), 3, "step 1, layer 1 was not calibrated"),
        (LAYOUT, None, 3, "does not tell"),
        (LAYOUT, Place(), 4, "for 3 heads"),
    ],
)
def test_masks_that_do_not_fit_are_refused_with_advice(
    layout: Layout, place: Place | None, heads: int, advice: str
) -> None:
    with pytest.raises(ValueError, match=advice):
        calibrated().select(rule_call(layout, position=place, heads=heads))


def portable() -> Portable:
    def mask(seed: int) -> DisplacementMask:
        kept = torch.rand(3, 5, 5, 5, generator=torch.Generator().manual_seed(seed)) < 0.3
        return DisplacementMask((1.0, 1.0, 4.0), kept, torch.tensor([True, False, False]))

    return Portable({(bucket, 0): mask(bucket) for bucket in range(3)}, edges=(0.2, 0.6))


def volume(seed: int) -> PortableVolume:
    scores = torch.randn(3, 5, 5, 5, generator=torch.Generator().manual_seed(seed)).half()
    return PortableVolume((1.0, 1.0, 4.0), scores, torch.ones(5, 5, 5, dtype=torch.bool), TokenGrid(3, 5, 7))


@pytest.mark.parametrize("layout", [LAYOUT, layout_of((6, 4, 9), 0, 3, order="tile")], ids=str)
def test_portable_scores_are_cut_at_each_heads_density(layout: Layout) -> None:
    found = Portable({(0, 0): volume(0)})
    call = rule_call(layout, Policy(density=(0.2, 0.4, 0.7), method="row"), position=Place())
    tables = call.tables
    for densities in ((0.2, 0.4, 0.7), (0.5, 0.1, 0.3)):
        # The same state: another policy must not get what an earlier one was given.
        call = with_policy(call, replace(call.policy, density=densities))
        keep = found.select(call)
        as_head = replace(call.policy, method="head")
        assert torch.equal(keep[1], select_blocks(volume(0).scores(tables), tables, as_head)[0])
        video = keep[0, :, : tables.q.video, : tables.k.video].float().mean((1, 2))
        torch.testing.assert_close(video, torch.tensor(densities), rtol=0, atol=0.05)


def test_the_state_of_one_mask_is_not_another_buckets() -> None:
    found = portable()
    call = rule_call(LAYOUT, position=Place(progress=0.0))
    first = found.select(call)
    assert found.select(call).data_ptr() == first.data_ptr()
    second = found.select(replace(call, position=Place(progress=0.9)))
    assert torch.equal(second[0, :, : call.tables.q.video, : call.tables.k.video], found.masks[2, 0].mask(call.tables))  # type: ignore[union-attr]
    assert not torch.equal(second, first)


@pytest.mark.parametrize("layout", [LAYOUT, layout_of((6, 4, 9), order="tile")], ids=str)
def test_portable_masks_fit_any_grid_and_change_with_progress(layout: Layout) -> None:
    found, state = portable(), {}  # type: ignore[var-annotated]
    for progress, bucket in ((0.0, 0), (0.19, 0), (0.2, 1), (0.2, 1), (0.7, 2)):
        call = rule_call(layout, position=Place(progress=progress))
        keep = found.select(replace(call, state=state))
        expected = found.masks[bucket, 0].mask(call.tables)
        rows, columns = call.tables.q.video, call.tables.k.video
        assert torch.equal(keep[:, :, :rows, :columns], expected.expand(2, -1, -1, -1))
        assert keep[:, :, rows:].all() and keep[:, :, :, columns:].all()
        assert keep.any(-1).all()


def test_a_device_that_holds_some_of_the_heads_reads_its_part() -> None:
    policy = Policy(density=(0.2, 0.4, 0.7))
    whole = rule_call(LAYOUT, policy, position=Place(1))
    part = replace(whole.of_heads(slice(1, 2)), position=Place(1, 0.0, 0, 1, 3), state={})
    assert torch.equal(calibrated().select(part), calibrated().select(whole)[:, 1:2])
    assert calibrated().repeats(part) == (True,) and calibrated().repeats(whole) == (False, True, True)
    for found in (portable(), Portable({(0, 0): volume(0)})):
        assert torch.equal(found.select(part), found.select(replace(whole, state={}))[:, 1:2])
        part.state.clear()


def test_portable_masks_say_what_they_lack() -> None:
    for call, advice in (
        (rule_call(LAYOUT), "does not tell"),
        (rule_call(LAYOUT, position=Place(layer=4)), "layer 4 has no portable mask"),
        (rule_call(LAYOUT, position=Place(), heads=2), "for 3 heads"),
    ):
        with pytest.raises(ValueError, match=advice):
            portable().select(call)
