"""Draft attention as an attention function: the forms of xDiT and raylight, from stand-ins of their signatures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from draftattention.draftattn_core import Policy, Schedule, Settings, TokenGrid
from draftattention.draftattn_core.hosts.head_attention import HeadAttention
from draftattention.draftattn_core.run.step_cache import StepCacheSettings

GRID = TokenGrid(3, 5, 7)
TAILS = ("none", "mean", "linear0", "linear1")
SPARSE = Settings(policy=Policy(tail=TAILS), schedule=Schedule(((0.0, 0.3),)), q_block=16, k_block=8, auto_gain=False)


def qkv(heads: int = 4, tokens: int = GRID.tokens) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(2, heads, tokens, 16) for _ in range(3))


def test_each_rank_computes_its_heads_of_the_whole_call():
    tensors = qkv()
    whole, nothing = HeadAttention(SPARSE, GRID, 1)(*tensors, dropout_p=0.0, is_causal=False)
    assert nothing is None
    parts = [
        HeadAttention(SPARSE, GRID, 1, rank=rank, ranks=2)(
            *(x[:, 2 * rank : 2 * rank + 2] for x in tensors), 0.0, False
        )
        for rank in range(2)
    ]
    torch.testing.assert_close(torch.cat([out for out, _ in parts], 1), whole, rtol=1e-5, atol=1e-6)
    assert (whole - scaled_dot_product_attention(*tensors)).norm() > 1e-2


def test_raylights_form_has_tokens_before_heads_and_its_own_dense():
    tensors = qkv()
    function = HeadAttention(SPARSE, GRID, 1)
    flat = [x.transpose(1, 2) for x in tensors]

    def ring_attn_fn(q: Any, k: Any, v: Any, *, causal: bool = False) -> torch.Tensor:
        return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=causal).transpose(1, 2)

    out = function.inner(ring_attn_fn, *flat, transformer_options={}, causal=False)
    expected, _ = HeadAttention(SPARSE, GRID, 1)(*tensors)
    torch.testing.assert_close(out.transpose(1, 2), expected)
    causal = function.inner(ring_attn_fn, *flat, transformer_options={}, causal=True)
    assert torch.equal(causal, ring_attn_fn(*flat, causal=True))
    assert function.report.calls_sparse == 1 and function.report.calls_dense() == {"mask": 1}


def test_calls_are_counted_by_layer_and_evaluation_and_what_is_no_self_attention_is_dense():
    function = HeadAttention(SPARSE, GRID, 2, evaluations=3)
    q, k, v = qkv()
    text = qkv(tokens=9)
    for _ in range(3):
        for _ in range(2):
            function(q, k, v)
            torch.testing.assert_close(function(q, *text[1:])[0], scaled_dot_product_attention(q, *text[1:]))
    function(*text)
    report = function.finish()
    assert [(c.position.step, c.position.layer) for c in report.calls if c.position] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1),
    ]  # fmt: skip
    assert report.calls_dense() == {"not self-attention": 6, "tokens not accounted for": 1}


def test_what_ranks_would_have_to_decide_together_is_refused():
    with pytest.raises(ValueError, match="budgets rest on the heads of all ranks"):
        HeadAttention(Settings(budgets="error"), GRID, 1)
    with pytest.raises(ValueError, match="steps are not skipped here"):
        HeadAttention(Settings(skip=StepCacheSettings("forecast")), GRID, 1)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        HeadAttention(SPARSE, GRID, 1, rank=2, ranks=2)
