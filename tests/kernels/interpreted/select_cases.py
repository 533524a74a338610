"""select against the core's selection: the same pairs, as a map and as ascending lists, ties and NaN included."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout, LayoutTables, build_tables
from draftattention.draftattn_core.method.policy import Density, Policy
from draftattention.draftattn_core.method.selection import forced_blocks, select_blocks
from draftattention.kernels import select as select_module
from draftattention.kernels.select import head_thresholds, lists_of
from tests.kernels.calls import select_scores
from tests.kernels.problems import words_of

# Two chunks of columns, the second one short, and extra blocks behind the video's.
TABLES = build_tables(Layout(TokenGrid(4, 10, 14), 0, 20, 512, 16, tile=(4, 8, 16)))
BLOCK = 32


def scores_of(tables: LayoutTables, kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(1, 2, tables.q.video, tables.k.video, generator=generator) * 2
    if kind == "ties":
        return scores.round()
    if kind == "edges":
        scores[0, 0, 0] = -math.inf
        scores[0, 0, 1, 2] = torch.finfo(torch.float32).max
        scores[0, 1, 0, ::2] = -math.inf
        scores[0, 1, 1] = torch.tensor([0.0, -0.0] * 18)[: scores.shape[-1]]
    if kind == "not a number":
        scores[0, 0, :, 3] = scores[0, 1, 1, ::2] = math.nan
        scores[0, 0, 0, 4:] = -math.inf
        scores[0, 1, 0] = math.nan
    return scores


def check(scores: Tensor, policy: Policy, tables: LayoutTables = TABLES) -> None:
    # As the core's own draft hands them over: NaN ranks last, beside what is infinitely small.
    expected = select_blocks(scores.where(scores == scores, -math.inf), tables, policy)
    keep, selected = select_scores(scores, tables, policy, BLOCK)
    # As bytes: any byte but 0 is true, one that was never written too.
    assert torch.equal(keep.view(torch.uint8), expected.view(torch.uint8))
    assert torch.equal(selected.counts, expected.sum(-1, dtype=torch.int32))
    assert torch.equal(selected.words, words_of(expected, filler=False))
    for found, kept, count in zip(selected.lists.flatten(0, 2), expected.flatten(0, 2), selected.counts.flatten()):
        assert found[:count].tolist() == kept.nonzero()[:, 0].tolist()
        assert found[count:].tolist() == (~kept).nonzero()[:, 0].flip(0).tolist()


@pytest.mark.parametrize("kind", ["ties", "edges", "not a number"])
@pytest.mark.parametrize("method", ["row", "head", "top_p", "draft"])
def test_keeps_what_the_core_keeps(method: str, kind: str) -> None:
    check(scores_of(TABLES, kind), Policy(density=(0.2, 0.6), method=method, tail="mean", floor=0.3))


@pytest.mark.parametrize("method", ["row", "head", "top_p"])
def test_rows_longer_than_what_stays_in_registers(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(select_module, "HELD", 1)
    assert TABLES.k.video > BLOCK
    check(scores_of(TABLES, "ties"), Policy(density=(0.2, 0.6), method=method, tail="mean", floor=0.3))


@pytest.mark.parametrize("method", ["row", "head", "top_p", "draft"])
def test_nothing_of_one_head_and_all_of_another(method: str) -> None:
    """A tail stands in for rows that keep nothing."""
    policy = Policy(density=(0.0, 1.0), method=method, tail="mean", keep_own=False, top_p=0.0, floor=1.0)
    scores = scores_of(TABLES, "plain")
    video = select_blocks(scores, TABLES, policy)[:, :, : TABLES.q.video, : TABLES.k.video]
    assert int(video[:, 0].sum()) == (method == "draft") and video[:, 1].all()
    check(scores, policy)


@pytest.mark.parametrize(("method", "density"), [("row", 0.0), ("head", (0.0, 0.01)), ("draft", (0.0, 0.01))])
def test_least_densities_without_a_tail(method: str, density: Density) -> None:
    check(scores_of(TABLES, "plain"), Policy(density=density, method=method, tail="none", keep_own=False))


@pytest.mark.parametrize("ties", [False, True])
def test_the_nth_largest_of_a_map_that_many_programs_share(ties: bool) -> None:
    ranked = torch.randn(2, 2, 9, 101, generator=torch.Generator().manual_seed(1))
    ranked = ranked.mul(2).round() if ties else ranked
    ranked[0, 1, 3, :5] = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0])
    assert ranked[0, 0].numel() > 7 * 4 * BLOCK
    counts = torch.tensor([1, 417], dtype=torch.int32)
    thresholds, needs = head_thresholds(ranked, counts, block=BLOCK)
    for pair, values in enumerate(ranked.nan_to_num(-math.inf, math.inf, -math.inf).flatten(0, 1).flatten(1)):
        wanted = int(counts[pair % 2])
        expected = values.sort(descending=True).values[wanted - 1] + 0.0
        bits = int(thresholds[pair])
        found = torch.tensor(bits if bits >= 0 else bits ^ 0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
        assert found == expected
        assert int(needs[pair]) == wanted - int((values > expected).sum())


def test_no_mass_at_all() -> None:
    policy = Policy(density=0.1, method="top_p", top_p=0.0, tail="none", keep_own=False, keep_first_frame=True)
    check(scores_of(TABLES, "ties"), policy)


def test_the_whole_mass() -> None:
    """Of rows whose shares of it are exact; what has none of it is left out."""
    scores = torch.zeros(1, 2, TABLES.q.video, TABLES.k.video)
    scores[..., [4, 17, 30]] = -math.inf
    assert (scores == 0.0).sum(-1).unique().tolist() == [32]
    policy = Policy(density=0.0, method="top_p", top_p=1.0, tail="mean", keep_own=False)
    kept = select_blocks(scores, TABLES, policy)[:, :, : TABLES.q.video, : TABLES.k.video]
    assert torch.equal(kept, scores == 0.0)
    check(scores, policy)


@pytest.mark.parametrize("method", ["row", "head", "top_p", "draft"])
def test_a_batch_of_two_and_no_extra_tokens(method: str) -> None:
    tables = build_tables(Layout(TokenGrid(2, 4, 6), 0, 0, 32, 16))
    scores = torch.randn(2, 2, tables.q.video, tables.k.video, generator=torch.Generator().manual_seed(5))
    check(scores, Policy(density=(0.1, 0.6), method=method, tail="mean"), tables)


@pytest.mark.parametrize("tail", ["mean", "none"])
@pytest.mark.parametrize("method", ["row", "head", "top_p", "draft"])
def test_infinite_scores_push_out_nothing_that_is_promised(method: str, tail: str) -> None:
    """Raw scores come here as they are; where they overflow, a selection is still whole."""
    scores = scores_of(TABLES, "plain")
    scores[0, 0, :, 3] = math.inf
    scores[0, 0, 1] = math.inf
    scores[0, 1, 0, ::2] = -math.inf
    scores[0, 1, 0, 1] = math.inf
    policy = Policy(density=0.3, method=method, tail=tail)
    keep, selected = select_scores(scores, TABLES, policy, BLOCK)
    video = keep[..., : TABLES.q.video, : TABLES.k.video]
    assert (video | ~forced_blocks(TABLES, policy)).all()
    assert torch.equal(selected.counts, keep.sum(-1, dtype=torch.int32))
    assert video.any(-1).all()


def test_lists_of_a_given_map() -> None:
    keep = torch.rand(1, 2, 5, 37, generator=torch.Generator().manual_seed(0)) < 0.4
    keep[0, 0, 2] = False
    keep[0, 1, 4] = True
    selected = lists_of(keep, block=BLOCK)
    assert torch.equal(selected.words, words_of(keep, filler=False))
    for found, kept, count in zip(selected.lists.flatten(0, 2), keep.flatten(0, 2), selected.counts.flatten()):
        assert found[:count].tolist() == kept.nonzero()[:, 0].tolist()
        assert found[count:].tolist() == (~kept).nonzero()[:, 0].flip(0).tolist()
