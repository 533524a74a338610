"""Selection: every method against a loop that says what it means, budgets to the block, inputs that are no numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.attention import attend
from draftattention.draftattn_core.geometry.layout import LayoutTables, build_tables
from draftattention.draftattn_core.method import selection
from draftattention.draftattn_core.method.draft import draft_logits, make_draft
from draftattention.draftattn_core.method.policy import Policy
from draftattention.draftattn_core.method.rules.draft import above_threshold, threshold_ranks
from draftattention.draftattn_core.method.selection import (
    forced_blocks,
    select_blocks,
    select_from_draft,
)
from tests.core.cases import RANKED, small_layout, smooth_qkv

TABLES = build_tables(small_layout((3, 5, 7)))  # 7 query blocks x 14 key blocks
EXTRA_TABLES = build_tables(small_layout((3, 5, 7), 5, 12))
DENSITIES = [0.0, 0.07, 0.25, 0.5, 0.83, 1.0]


def random_scores(tables: LayoutTables = TABLES, heads: int = 3, batch: int = 2, *, ties: bool = False) -> Tensor:
    scores = torch.randn(batch, heads, tables.q.video, tables.k.video, generator=torch.Generator().manual_seed(1)) * 2
    return scores.round() if ties else scores


def paper_threshold(scores: Tensor, densities: tuple[float, ...]) -> Tensor:
    """The published rule alone, without what a policy forces."""
    ranks = threshold_ranks(densities, scores.shape[2] * scores.shape[3])
    return above_threshold(scores, torch.tensor(ranks))


def best_first(values: list[float]) -> list[int]:
    """Indices from the largest value to the smallest; equal values in index order."""
    return sorted(range(len(values)), key=lambda j: (-values[j], j))


def naive(scores: Tensor, tables: LayoutTables, policy: Policy) -> Tensor:
    """What each method means, one entry at a time."""
    densities = policy.density if isinstance(policy.density, tuple) else (policy.density,) * scores.shape[1]
    forced = forced_blocks(tables, policy)
    rows, columns = forced.shape
    fewest = 1 if policy.drops else 0
    keep = torch.zeros(scores.shape, dtype=torch.bool)
    for b in range(scores.shape[0]):
        for h, density in enumerate(densities):
            chosen = keep[b, h]
            table = scores[b, h]
            mass = table.softmax(-1)
            if policy.method == "draft":
                drop = int((1.0 - density) * rows * columns)
                smallest = sorted(mass.flatten().tolist())[:drop]
                for i in range(rows):
                    for j in range(columns):
                        chosen[i, j] = drop == 0 or float(mass[i, j]) >= smallest[-1]
                chosen |= forced
                for i in range(rows):
                    if policy.drops and not chosen[i].any():
                        chosen[i, best_first(table[i].tolist())[0]] = True
                continue
            for i in range(rows):
                row = [math.inf if forced[i, j] else float(table[i, j]) for j in range(columns)]
                share = density if policy.method == "row" else policy.floor * density
                rounded = {"row": round, "head": math.floor, "top_p": math.ceil}[policy.method](share * columns)
                count = max(rounded, fewest, int(forced[i].sum()))
                if policy.method == "top_p":
                    order, held = best_first(table[i].tolist()), 0.0
                    for position, j in enumerate(order):
                        chosen[i, j] |= held < policy.top_p or position < count
                        held += float(mass[i, j])
                    chosen[i] |= forced[i]
                else:
                    chosen[i, best_first(row)[:count]] = True
            if policy.method == "head":
                left = round(density * rows * columns) - int(chosen.sum())
                log_mass = table.log_softmax(-1).flatten().tolist()
                others = [c for c in best_first(log_mass) if not chosen.view(-1)[c]]
                chosen.view(-1)[others[: max(0, left)]] = True
    return keep


@pytest.mark.parametrize("method", RANKED)
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("tail", ["none", "linear0"])
@pytest.mark.parametrize("keep_own", [True, False])
@pytest.mark.parametrize("ties", [False, True])
def test_every_method_does_what_its_definition_says(
    method: str, density: float, tail: str, keep_own: bool, ties: bool
) -> None:
    policy = Policy(density=density, method=method, tail=tail, keep_own=keep_own, keep_first_frame=True, top_p=0.7)  # type: ignore[arg-type]
    scores = random_scores(ties=ties)
    assert torch.equal(select_blocks(scores, TABLES, policy), naive(scores, TABLES, policy))


@pytest.mark.parametrize("method", RANKED)
def test_each_head_has_its_own_density(method: str) -> None:
    policy = Policy(density=(0.1, 0.4, 0.9), method=method, top_p=0.2)  # type: ignore[arg-type]
    scores = random_scores()
    keep = select_blocks(scores, TABLES, policy)
    assert torch.equal(keep, naive(scores, TABLES, policy))
    for head, density in enumerate((0.1, 0.4, 0.9)):
        one = Policy(density=density, method=method, top_p=0.2)  # type: ignore[arg-type]
        assert torch.equal(keep[:, head], select_blocks(scores, TABLES, one)[:, head])


def test_a_wrong_number_of_densities_is_refused() -> None:
    with pytest.raises(ValueError, match="2 densities for 3 heads"):
        select_blocks(random_scores(), TABLES, Policy(density=(0.1, 0.2)))


@pytest.mark.parametrize("density", [0.3, 0.5, 0.8])
def test_the_head_budget_is_spent_to_the_block(density: float) -> None:
    keep = select_blocks(random_scores(), TABLES, Policy(density=density, floor=0.5))
    assert (keep.sum((2, 3)) == round(density * 7 * 14)).all()
    assert (keep.sum(3) >= math.floor(0.5 * density * 14)).all()


def test_a_budget_below_what_is_forced_grows_to_it() -> None:
    keep = select_blocks(random_scores(), TABLES, Policy(density=0.01))
    assert torch.equal(keep, TABLES.own.expand_as(keep))


@pytest.mark.parametrize("density", [0.25, 0.5])
def test_every_row_gets_its_top_k(density: float) -> None:
    keep = select_blocks(random_scores(), TABLES, Policy(density=density, method="row"))
    assert (keep.sum(3) == round(density * 14)).all()


def test_the_head_budget_goes_where_rows_are_concentrated() -> None:
    # One row with large but flat logits must not take the budget of rows with a clear favourite.
    scores = torch.zeros(1, 1, 7, 14)
    scores[0, 0, 0] = 100.0
    scores[0, 0, 1:, 3] = 5.0
    keep = select_blocks(scores, TABLES, Policy(density=13 / 98, floor=0.0, keep_own=False))
    assert keep[0, 0, 1:, 3].all()


def test_the_published_rule_by_hand() -> None:
    # Two rows, four columns; softmax of log(p) is p. Dropping k = int(0.5 * 8) = 4 sets the threshold at the 4th
    # smallest, 0.1, and entries equal to it stay: 0.7, 0.4, 0.3 and all the 0.1s of both rows.
    p = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.25, 0.05]])
    keep = paper_threshold(p.log().view(1, 1, 2, 4).double(), (0.5,))
    assert keep.view(2, 4).tolist() == [[True, True, True, True], [True, True, True, False]]
    # k = int(0.25 * 8) = 2: threshold 0.1 again. k = 7: threshold 0.4.
    keep = paper_threshold(p.log().view(1, 1, 2, 4).double(), (0.125,))
    assert keep.view(2, 4).tolist() == [[True, False, False, False], [True, False, False, False]]
    assert paper_threshold(p.log().view(1, 1, 2, 4), (1.0,)).all()


def test_the_published_rule_keeps_at_least_its_share_and_exactly_it_plus_one_without_ties() -> None:
    for density in (0.1, 0.25, 0.9):
        dropped = int((1 - density) * 98)
        keep = select_blocks(random_scores(), TABLES, Policy.paper(density))
        kept = keep.sum((2, 3))
        filled = (keep.sum(3) == 1) & ~paper_threshold(random_scores(), (density,) * 3).any(-1)
        assert torch.equal(kept, 98 - dropped + 1 + filled.sum(2))


@pytest.mark.parametrize("method", RANKED)
@pytest.mark.parametrize("density", [0.0, 0.02])
def test_no_row_is_empty_where_nothing_stands_in_for_it(method: str, density: float) -> None:
    policy = Policy(density=density, method=method, tail="none", keep_own=False, top_p=0.0, floor=0.0)  # type: ignore[arg-type]
    scores = random_scores()
    scores[..., 0, :] -= 50
    assert select_blocks(scores, TABLES, policy).any(-1).all()


@pytest.mark.parametrize("method", ["head", "row", "top_p"])
def test_density_0_leaves_rows_to_the_tail(method: str) -> None:
    policy = Policy(density=0.0, method=method, tail="mean", keep_own=False, top_p=0.0)  # type: ignore[arg-type]
    assert not select_blocks(random_scores(), TABLES, policy).any()


@pytest.mark.parametrize("method", ["head", "row", "draft"])
def test_density_1_keeps_everything(method: str) -> None:
    assert select_blocks(random_scores(), TABLES, Policy(density=1.0, method=method)).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("method", RANKED)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_inputs_that_are_not_numbers_give_a_usable_selection(method: str, bad: float) -> None:
    layout = small_layout((3, 5, 7), 2, 0)
    tables = build_tables(layout)
    policy = Policy(density=0.2, method=method, tail="none", keep_first_frame=True)  # type: ignore[arg-type]
    for where in ("one key", "one query", "everything"):
        q, k, _ = smooth_qkv(layout, dtype=torch.float32)
        if where == "one key":
            k[0, 0, 50] = bad
        elif where == "one query":
            q[0, 0, 50, 3] = bad
        else:
            k.fill_(bad)
        keep = select_blocks(draft_logits(make_draft(q, k, tables, spread=True), tables, 0.25), tables, policy)
        video = keep[:, :, : tables.q.video, : tables.k.video]
        assert (video | ~forced_blocks(tables, policy)).all()
        assert video.any(-1).all()
        assert keep[:, :, tables.q.video :].all() and keep[..., tables.k.video :].all()
        if where == "one key" and method in ("head", "row") and bad != float("inf"):
            # The other head does not notice.
            clean = draft_logits(
                make_draft(*smooth_qkv(layout, dtype=torch.float32)[:2], tables, spread=True), tables, 0.25
            )
            assert torch.equal(keep[:, 1], select_blocks(clean, tables, policy)[:, 1])


def test_extra_tokens_are_always_kept_as_queries_and_as_keys() -> None:
    keep = select_blocks(random_scores(EXTRA_TABLES), EXTRA_TABLES, Policy(density=0.1))
    assert keep.shape[2:] == (7 + 2, 14 + 3)
    assert keep[:, :, 7:].all()
    assert keep[..., 14:].all()
    assert torch.equal(keep[:, :, :7, :14], select_blocks(random_scores(), TABLES, Policy(density=0.1)))


def test_heads_in_groups_select_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = small_layout((3, 5, 7), 0, 5)
    tables = build_tables(layout)
    q, k, _ = smooth_qkv(layout, heads=5, batch=2)
    draft = make_draft(q, k, tables, spread=True)
    policy = Policy(density=(0.1, 0.3, 0.5, 0.2, 0.9))
    whole = select_blocks(draft_logits(draft, tables, 0.25), tables, policy)
    assert torch.equal(select_from_draft(draft, tables, policy, 0.25), whole)
    monkeypatch.setattr(selection, "_CHUNK_BYTES", 2 * 2 * 98 * selection._BYTES_PER_PAIR)
    assert torch.equal(select_from_draft(draft, tables, policy, 0.25), whole)


def test_density_of_a_call_counts_token_pairs_short_blocks_and_extra_tokens_included() -> None:
    layout = small_layout((3, 5, 7), 5, 12)
    q, k, v = smooth_qkv(layout, batch=2)
    result = attend(q, k, v, layout, Policy(density=0.3))
    tables, keep = result.request.tables, result.request.keep
    pairs = 0
    for i in range(tables.q.total):
        for j in range(tables.k.total):
            rows, columns = (t.bounds[x + 1] - t.bounds[x] for t, x in ((tables.q, i), (tables.k, j)))
            pairs += int(keep[:, :, i, j].sum()) * rows * columns
    assert int(result.computed_pairs().sum()) == pairs
    assert float(result.density()) == pytest.approx(pairs / (4 * layout.tokens**2), rel=1e-6)
    assert float(attend(q, k, v, layout, Policy(density=1.0)).density()) == 1.0
    counted = replace(result, request=replace(result.request, counts=keep.sum(-1, dtype=torch.int32)))
    assert torch.equal(counted.computed_pairs(), result.computed_pairs())
    assert torch.equal(counted.density(), result.density())
    # The map itself is read for its short blocks only.
    assert counted.request.counts is not None
    fewer = replace(counted, request=replace(counted.request, counts=counted.request.counts - 1))
    assert (fewer.computed_pairs() < result.computed_pairs()).all()


@pytest.mark.parametrize("ties", [False, True])
def test_the_largest_entries_are_the_same_sorted_or_by_threshold(ties: bool) -> None:
    scores = random_scores(ties=ties)
    scores[0, 0, 2] = -torch.inf
    scores[0, 1, :, 4:7] = torch.inf
    for counts in (torch.arange(0, 14, 2).view(1, 1, 7, 1), torch.tensor([0, 3, 14]).view(1, 3, 1, 1)):
        by_threshold = selection._best_by_threshold(scores, counts)
        assert torch.equal(by_threshold, selection._best_by_sorting(scores, counts))
        assert torch.equal(by_threshold.sum(-1, keepdim=True), counts.expand(2, 3, 7, 1))
