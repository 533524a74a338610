"""Draft attention as an attention function: the forms of xDiT and raylight, from stand-ins of their signatures."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
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


class LongContextAttention:
    """As xFuser's, of which raylight makes one per family of models: heads for tokens, a function between, and back.

    The ranks are threads, and what they exchange lies in a list.
    """

    def __init__(self, rank: int, shared: list[Any], meeting: threading.Barrier) -> None:
        self.rank, self.shared, self.meeting = rank, shared, meeting
        self.ring_attn_fn: Any = lambda q, k, v, **_: flat_sdpa(q, k, v)

    def exchanged(self, x: torch.Tensor, split: int, join: int) -> torch.Tensor:
        self.shared[self.rank] = x.chunk(len(self.shared), split)
        self.meeting.wait(10)
        out = torch.cat([parts[self.rank] for parts in self.shared], join)
        self.meeting.wait(10)
        return out

    def __call__(self, attn: Any, *tensors: torch.Tensor, joint_tensor_key: Any = None) -> torch.Tensor:
        q, k, v = (self.exchanged(x, 2, 1) for x in tensors)
        out = self.ring_attn_fn(
            q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), alibi_slopes=None,
            deterministic=False, return_attn_probs=False, group=None, attn_type="TORCH", attn_processor=None,
            attn_layer=attn, joint_tensor_key=joint_tensor_key, joint_tensor_value=joint_tensor_key,
            joint_strategy="none",
        )  # fmt: skip
        return self.exchanged(out, 1, 2)


class InnerAttentionDispatcher:
    """As raylight's: has a processor of the model's transformer_options asked in place of `ring_attn_fn`."""

    def __init__(self, attention: LongContextAttention, options: dict[str, Any]) -> None:
        dense = attention.ring_attn_fn

        def dispatch(q: Any, k: Any, v: Any, **kwargs: Any) -> Any:
            processor = options["raylight_inner_attention"]
            return processor(dense, q, k, v, transformer_options=options, **kwargs)

        attention.ring_attn_fn = dispatch


def flat_sdpa(*tensors: torch.Tensor) -> torch.Tensor:
    """Dense attention of (B, L, H, D) tensors."""
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in tensors)).transpose(1, 2)


def over_raylight(flat: list[torch.Tensor], functions: list[HeadAttention], joint: Any = None) -> torch.Tensor:
    """What raylight's ranks make of (B, L, H, D) tensors together, each with a part of their tokens."""
    shared: list[Any] = [None] * len(functions)
    meeting = threading.Barrier(len(functions))

    def work(rank: int) -> torch.Tensor:
        attention = LongContextAttention(rank, shared, meeting)
        InnerAttentionDispatcher(attention, {"raylight_inner_attention": functions[rank].inner})
        return attention(None, *(x.chunk(len(functions), 1)[rank] for x in flat), joint_tensor_key=joint)

    with ThreadPoolExecutor(len(functions)) as threads:
        return torch.cat(list(threads.map(work, range(len(functions)))), 1)


def test_raylights_ranks_make_what_one_process_makes_with_text_before_and_padding_after():
    # 9 tokens of text, the video, one token that makes the shares even.
    around = {"before": 9, "after": 1}
    tensors = qkv(tokens=9 + GRID.tokens + 1)
    expected = HeadAttention(SPARSE, GRID, 1, **around)(*tensors)[0].transpose(1, 2)
    flat = [x.transpose(1, 2) for x in tensors]
    assert (expected - flat_sdpa(*flat)).norm() > 1e-2
    functions = [HeadAttention(SPARSE, GRID, 1, rank=rank, ranks=2, **around) for rank in range(2)]
    torch.testing.assert_close(over_raylight(flat, functions), expected, rtol=1e-5, atol=1e-6)
    assert [function.report.calls_sparse for function in functions] == [1, 1]


def test_text_that_raylight_brings_beside_the_exchange_is_left_to_its_own_attention():
    flat = [x.transpose(1, 2) for x in qkv(tokens=GRID.tokens + 1)]
    functions = [HeadAttention(SPARSE, GRID, 1, after=1, rank=rank, ranks=2) for rank in range(2)]
    dense = over_raylight(flat, functions, joint=torch.zeros(2, 9, 2, 16))
    torch.testing.assert_close(dense, flat_sdpa(*flat))
    assert functions[0].report.calls_dense() == {"mask": 1}


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
    with pytest.raises(ValueError, match="-1 tokens before the video"):
        HeadAttention(SPARSE, GRID, 1, before=-1)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        HeadAttention(SPARSE, GRID, 1, rank=2, ranks=2)
