"""The benches' comparison of selections: room for rounding at a head's threshold, none for wrong pairs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.kernels.selections import _promised, difference
from draftattention.draftattn_core import Layout, Policy, TokenGrid
from draftattention.draftattn_core.geometry.layout import build_tables
from draftattention.draftattn_core.method.selection import select_blocks

POLICY = Policy(density=0.25, tail="linear1")
# With extra blocks behind the video's.
TABLES = build_tables(Layout(TokenGrid(8, 24, 32), 0, 20, 64, 32))
ROWS, COLUMNS = TABLES.q.video, TABLES.k.video


def scores_of(heads: int = 4) -> Tensor:
    return torch.randn(1, heads, ROWS, COLUMNS, generator=torch.Generator().manual_seed(3)) * 2


def selected(ranks: Tensor, scores: Tensor) -> Tensor:
    """The selection of a whole call when a head's budget goes to its best `ranks`, after what its rows are promised."""
    best = ranks.flatten(2).masked_fill(_promised(scores, TABLES, POLICY), torch.inf)
    budget = round(0.25 * ROWS * COLUMNS)
    keep = torch.ones(1, scores.shape[1], TABLES.q.total, TABLES.k.total, dtype=torch.bool)
    chosen = torch.zeros_like(best, dtype=torch.bool).scatter_(-1, best.topk(budget).indices, True)
    keep[:, :, :ROWS, :COLUMNS] = chosen.view(scores.shape)
    return keep


def at_the_threshold(scores: Tensor) -> tuple[int, int]:
    """Of head 0: the lowest pair that its budget keeps, and the highest it does not."""
    rank = scores.double().log_softmax(-1).flatten(2)
    keep = select_blocks(scores.double(), TABLES, POLICY)[:, :, :ROWS, :COLUMNS].flatten(2)
    skips = ~keep | _promised(scores, TABLES, POLICY)
    return int(rank.masked_fill(skips, torch.inf)[0, 0].argmin()), int(
        rank.masked_fill(keep, -torch.inf)[0, 0].argmax()
    )


def straddling() -> tuple[Tensor, int, int]:
    """Scores in which the two pairs of `at_the_threshold` are closer than float32 can tell, and those pairs."""
    scores = scores_of()
    for _ in range(3):
        last, first = at_the_threshold(scores)
        rank = scores.double().log_softmax(-1).flatten()
        scores.view(-1)[first] += float(rank[last] - rank[first]) * 0.999
    last, first = at_the_threshold(scores)
    rank = scores.double().log_softmax(-1).flatten()
    assert 0.0 <= float(rank[last] - rank[first]) < 4e-7
    return scores, last, first


def turned_over(keep: Tensor, *pairs: int) -> Tensor:
    """The selection with pairs of head 0 turned over."""
    keep = keep.clone()
    for pair in pairs:
        keep[0, 0, pair // COLUMNS, pair % COLUMNS] ^= True
    return keep


def test_the_definition_in_float64_differs_in_nothing() -> None:
    scores = scores_of()
    found = difference(scores, select_blocks(scores.double(), TABLES, POLICY), TABLES, POLICY)
    assert (found.wrong, found.close, found.note, found.pairs) == (0, 0, "", scores.numel())


def test_ranks_that_differ_in_their_last_bits_are_no_fault() -> None:
    """The row of a pair at the threshold is off by the last place of a logarithm of 7, as where a GPU adds it up."""
    scores, last, first = straddling()
    ranks = scores.double().log_softmax(-1)
    ranks[0, 0, last // COLUMNS] -= 4.8e-7
    kept = selected(ranks, scores)
    found = difference(scores, kept, TABLES, POLICY)
    assert (found.wrong, found.close) == (0, 2)
    assert found.note == f"2 of {scores.numel()} block pairs differ within rounding of the threshold"
    assert not torch.equal(kept, select_blocks(scores.double(), TABLES, POLICY))


def test_a_pair_that_is_chosen_wrongly_is_wrong() -> None:
    scores = scores_of()
    kept = select_blocks(scores, TABLES, POLICY)
    last, first = at_the_threshold(scores)
    # Neighbours in rank, but far apart for float32: the one that should not be there is told from the threshold.
    assert difference(scores, turned_over(kept, last, first), TABLES, POLICY).wrong == 1
    assert difference(scores, turned_over(kept, last), TABLES, POLICY).wrong == 1
    promised = int(_promised(scores, TABLES, POLICY)[0, 0].nonzero()[0])
    assert difference(scores, turned_over(kept, promised, first), TABLES, POLICY).wrong == 2
    text = kept.clone()
    text[0, 0, 0, COLUMNS] = False
    assert difference(scores, text, TABLES, POLICY).wrong == 1


def test_a_head_that_keeps_another_number_of_pairs_is_wrong_however_close_they_are() -> None:
    scores, last, first = straddling()
    kept = select_blocks(scores.double(), TABLES, POLICY)
    assert difference(scores, turned_over(kept, last, first), TABLES, POLICY).close == 2
    assert difference(scores, turned_over(kept, last), TABLES, POLICY).wrong == 1
    assert difference(scores, turned_over(kept, first), TABLES, POLICY).wrong == 1


def test_only_the_method_that_is_timed_is_compared() -> None:
    scores = scores_of()
    with pytest.raises(ValueError, match="'row' are not compared"):
        difference(scores, scores > 0, TABLES, Policy(method="row"))
