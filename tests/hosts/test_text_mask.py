"""A host's mask over [video, text] becomes a bias on the text tokens that are read at all."""

from __future__ import annotations

import pytest
import torch

from draftattention.draftattn_core.hosts.diffusers.text_mask import read_text_mask

VIDEO, TEXT = 6, 4
HIDDEN = -torch.inf


def masks(rows: list[list[int]]) -> list[torch.Tensor]:
    """The same statement in every form: text only, video and text, with head and query axes, additive."""
    text = torch.tensor(rows).bool()
    whole = torch.nn.functional.pad(text, (VIDEO, 0), value=True)
    return [text, text.long(), whole, whole[:, None, None], torch.zeros(whole.shape).masked_fill(~whole, HIDDEN)]


@pytest.mark.parametrize("mask", masks([[1, 0, 0, 0], [1, 1, 1, 0]]))
def test_text_after_the_last_one_read_is_left_out_and_the_rest_biased(mask):
    read = read_text_mask(mask, VIDEO, TEXT)
    assert read.kept == 3
    assert torch.equal(read.bias, torch.tensor([[0.0, HIDDEN, HIDDEN], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("mask", masks([[0, 0, 1, 0], [0, 1, 1, 0]]))
def test_hidden_text_before_one_that_is_read_stays(mask):
    read = read_text_mask(mask, VIDEO, TEXT)
    assert read.kept == 3
    assert torch.equal(read.bias, torch.tensor([[HIDDEN, HIDDEN, 0.0], [HIDDEN, 0.0, 0.0]]))


@pytest.mark.parametrize(("row", "kept"), [([1, 1, 1, 1], 4), ([1, 1, 0, 0], 2), ([0, 0, 0, 0], 0)])
def test_a_mask_that_only_cuts_needs_no_bias(row, kept):
    for mask in masks([row, row]):
        read = read_text_mask(mask, VIDEO, TEXT)
        assert (read.kept, read.bias) == (kept, None)


def test_a_finite_bias_is_kept_as_it_is():
    mask = torch.zeros(1, TEXT)
    mask[0, 1] = -3.5
    assert torch.equal(read_text_mask(mask, VIDEO, TEXT).bias, mask)


@pytest.mark.parametrize(
    "mask",
    [
        torch.arange(VIDEO + TEXT)[None] != 2,
        torch.ones(1, 2, 1, VIDEO + TEXT, dtype=torch.bool),
        torch.ones(1, 1, VIDEO + TEXT, VIDEO + TEXT, dtype=torch.bool),
        torch.ones(1, VIDEO + TEXT + 1, dtype=torch.bool),
    ],
    ids=["video token", "per head", "per query", "too long"],
)
def test_what_cannot_be_expressed_is_not(mask):
    assert read_text_mask(mask, VIDEO, TEXT) is None
