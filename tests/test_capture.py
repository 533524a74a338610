"""A captured call holds the selection that ran and the draft map it came from, token by token."""

from __future__ import annotations

import pytest
import torch

from draftattention.draftattn_core import Layout, Policy, Position, TokenGrid, attend
from draftattention.draftattn_core.attention import Attention
from draftattention.draftattn_core.run.capture import CallCapture, capture
from draftattention.draftattn_core.run.events import CallDone

GRID = TokenGrid(3, 5, 7)
LAYOUT = Layout(GRID, extra_before=4, extra_after=3, q_block=16, k_block=8)
HERE = Position(step=2, progress=0.3, layer=1, layers=6)


@pytest.fixture
def call() -> Attention:
    q, k, v = (torch.randn(2, 3, LAYOUT.tokens, 8) for _ in range(3))
    return attend(q, k, v, LAYOUT, Policy(0.3))


def test_the_kept_pairs_are_those_of_the_call(call: Attention) -> None:
    taken = capture(call, HERE)
    tables = call.request.tables
    assert torch.equal(taken.keep, call.request.keep[0, :, : tables.q.video, : tables.k.video])
    assert taken.heads == 3 and taken.position == HERE and taken.backend == call.backend
    assert taken.density(1) == pytest.approx(taken.keep[1].float().mean().item())


def test_the_draft_map_is_the_softmax_of_pooled_logits(call: Attention) -> None:
    taken = capture(call, HERE)
    tables, request = call.request.tables, call.request
    q, k = (x[0, 2].double()[tables.perm[: GRID.tokens]] for x in (request.q, request.k))
    pooled_q = torch.stack([part.mean(0) for part in q.split(16)])
    pooled_k = torch.stack([part.mean(0) for part in k.split(8)])
    sizes = torch.tensor([len(part) for part in k.split(8)]).double()
    expected = (request.scale * pooled_q @ pooled_k.t() + sizes.log()).softmax(-1)
    assert torch.allclose(taken.draft[2].double(), expected, atol=1e-3)
    mass = (expected * taken.keep[2]).sum(-1).mean().item()
    assert taken.kept_mass(2) == pytest.approx(mass, abs=2e-3)


def test_volumes_put_every_token_where_it_is_in_the_video(call: Attention) -> None:
    taken = capture(call, HERE)
    block = taken.query_block(0.5, 0.5, 0.5)
    draft, keep, query = taken.per_token(1, block)
    assert draft.shape == keep.shape == query.shape == GRID.as_tuple()
    assert query[1, 2, 3] and int(query.sum()) == 16
    tables = call.request.tables
    for t, h, w in ((0, 0, 0), (1, 4, 6), (2, 2, 3)):
        host = LAYOUT.extra_before + (t * GRID.h + h) * GRID.w + w
        key_block = tables.k.of_token[tables.inverse[host]]
        assert draft[t, h, w] == taken.draft[1, block, key_block].float()
        assert keep[t, h, w] == taken.keep[1, block, key_block]


def test_query_places_at_the_edges_stay_inside(call: Attention) -> None:
    taken = capture(call, HERE)
    for place in (0.0, 1.0):
        _, _, query = taken.per_token(0, taken.query_block(place, place, place))
        corner = -1 if place else 0
        assert query[corner, corner, corner]


def test_a_capture_takes_the_first_call_of_its_step_and_layer(call: Attention) -> None:
    wanted = CallCapture(step=2, layer=1)
    wanted(CallDone(Position(1, 0.1, 1, 6, "cond"), call))
    wanted(CallDone(Position(2, 0.3, 0, 6, "cond"), call))
    assert wanted.taken is None
    wanted(CallDone(Position(2, 0.3, 1, 6, "cond"), call))
    wanted(CallDone(Position(2, 0.3, 1, 6, "uncond"), call))
    assert wanted.taken is not None and wanted.taken.position.branch == "cond"


def test_negative_numbers_count_from_the_end(call: Attention) -> None:
    last = CallCapture(step=-1, layer=-1)
    for step in range(3):
        for layer in range(4):
            last(CallDone(Position(step, step / 3, layer, 4), call))
    assert last.taken is not None and (last.taken.position.step, last.taken.position.layer) == (2, 3)


def test_a_miss_says_what_there_would_have_been(call: Attention) -> None:
    wanted = CallCapture(step=0, layer=9)
    assert "nothing of this run was sparse" in wanted.missing()
    for step in (2, 3, 4, 7):
        wanted(CallDone(Position(step, step / 8, 1, 6), call))
    assert wanted.missing() == (
        "Step 1, layer 9 ran dense or does not exist. Sparse calls were seen in steps 3-5, 8 and layers 1."
    )
    wanted.clear()
    assert "nothing of this run was sparse" in wanted.missing()
