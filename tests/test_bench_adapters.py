"""The adapters of peers that are not installed: each calls a stand-in with its package's documented arguments.

The stand-ins check what the packages demand and compute plain masked attention from what they are given, so a list,
a mask, a padding or an order that an adapter gets wrong shows.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from benchmarks.kernels.peer_rows import peer_rows
from benchmarks.kernels.peers import PEERS, load
from benchmarks.kernels.plan import Shape
from benchmarks.kernels.timing import Clock

CLOCK = Clock(torch.device("cpu"))
# A ragged last block, and a video that ends inside a block.
SHAPES = [Shape("video", (4, 9, 11), 0, 2, 64, 128, 64), Shape("with text", (4, 9, 11), 70, 2, 64, 128, 64)]


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, kept: Tensor | None = None) -> Tensor:
    """(B, H, L, D) each, kept (B, H, L, L) or None."""
    logits = q @ k.transpose(-1, -2) * scale
    return (logits if kept is None else logits.masked_fill(~kept, -torch.inf)).softmax(-1) @ v


def tokens_kept(lists: Tensor, counts: Tensor, q_block: int, k_block: int, rows: int, columns: int) -> Tensor:
    """(B, H, rows, columns) from lists and counts per query block."""
    blocks = torch.zeros(*counts.shape, -(-columns // k_block), dtype=torch.bool)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in counts.shape)):
        b, h, r = index.tolist()
        found = lists[b, h, r, : counts[b, h, r]].long()
        assert torch.equal(found, found.unique()), "ascending, each once"
        blocks[b, h, r, found] = True
    by_row = blocks[:, :, torch.arange(rows) // q_block]
    return by_row[..., torch.arange(columns) // k_block]


def module(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    made = ModuleType(name)
    vars(made).update(contents)
    monkeypatch.setitem(sys.modules, name, made)


class BlockSparseTensors(NamedTuple):
    mask_block_cnt: Tensor
    mask_block_idx: Tensor
    full_block_cnt: Tensor
    full_block_idx: Tensor
    block_size: tuple[int, int]


def flash4(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, block_sparse_tensors: Any = None) -> Any:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    kept = None
    if block_sparse_tensors is not None:
        blocks = block_sparse_tensors
        assert not blocks.mask_block_cnt.any() and blocks.full_block_idx.dtype == torch.int32
        kept = tokens_kept(
            blocks.full_block_idx, blocks.full_block_cnt, *blocks.block_size, rows=q.shape[2], columns=k.shape[2]
        )
    return attention(q, k, v, softmax_scale, kept).transpose(1, 2), None


def cudnn_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: Tensor,
    *,
    block_sizes: Tensor,
    q2k_block_nums: Tensor,
    sparse_block_size: int,
    softmax_scale: float,
    layout: str,
) -> dict[str, Tensor]:
    block = sparse_block_size
    assert layout == "bhsd" and lists.dtype == q2k_block_nums.dtype == block_sizes.dtype == torch.int32
    assert block == 128 or q.shape[2] % 64 == 0
    assert lists.shape[:3] == q2k_block_nums.shape == (*q.shape[:2], -(-q.shape[2] // block))
    assert int(q2k_block_nums.min()) >= 1 and int(block_sizes.sum()) == k.shape[2]
    assert block_sizes.shape == (-(-k.shape[2] // block),)
    kept = tokens_kept(lists, q2k_block_nums, block, block, q.shape[2], k.shape[2])
    return {"o_tensor": attention(q, k, v, softmax_scale, kept)}


def mit(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    head_mask_type: Tensor,
    streaming_info: None,
    mask: Tensor,
    max_q: int,
    max_k: int,
    dropout: float,
    *,
    softmax_scale: float,
) -> Tensor:
    tokens, heads, _ = q.shape
    assert cu_q.tolist() == cu_k.tolist() == [0, tokens] and (max_q, max_k) == (tokens, tokens) and dropout == 0.0
    assert head_mask_type.tolist() == [1] * heads and mask.shape[:2] == (1, heads)
    block = torch.arange(tokens) // 128
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return attention(q, k, v, softmax_scale, mask[:, :, block][..., block])[0].transpose(0, 1)


class Wrapper:
    def __init__(self, workspace: Tensor) -> None:
        assert workspace.dtype == torch.uint8

    def plan(
        self,
        block_mask_map: Tensor,
        block_row_sz: Tensor,
        block_col_sz: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        sm_scale: float,
        q_data_type: torch.dtype,
    ) -> None:
        assert block_mask_map.shape == (num_kv_heads, block_row_sz.shape[1], block_col_sz.shape[1])
        assert len(block_row_sz) == len(block_col_sz) == num_qo_heads and block_row_sz.dtype == torch.int32
        rows, columns = (torch.repeat_interleave(torch.arange(len(s[0])), s[0]) for s in (block_row_sz, block_col_sz))
        self.kept, self.scale, self.dtype = block_mask_map[:, rows][..., columns], sm_scale, q_data_type

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert q.dtype == self.dtype and q.shape[1] == self.kept.shape[1]
        return attention(q, k, v, self.scale, self.kept)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    module(monkeypatch, "flash_attn")
    module(monkeypatch, "flash_attn.cute", flash_attn_func=flash4)
    module(monkeypatch, "flash_attn.cute.block_sparsity", BlockSparseTensorsTorch=BlockSparseTensors)
    module(
        monkeypatch,
        "flash_attn_interface",
        flash_attn_func=lambda *qkv, softmax_scale: flash4(*qkv, softmax_scale=softmax_scale)[0],
    )
    module(monkeypatch, "cudnn")
    module(monkeypatch, "cudnn.block_sparse_attention", block_sparse_attention_forward=cudnn_forward)
    module(monkeypatch, "block_sparse_attn", block_sparse_attn_func=mit)
    module(monkeypatch, "flashinfer", VariableBlockSparseAttentionWrapper=Wrapper)


STOOD_IN = [name for name in PEERS if name not in ("comfy_kitchen", "FlexAttention")]
CASES = [pytest.param(peer, id=f"{peer.name} {peer.by}") for name in STOOD_IN for peer in load(PEERS[name])]


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("peer", CASES)
def test_an_adapter_hands_over_the_kept_blocks(peer: Any) -> None:
    rows = list(peer_rows(peer, SHAPES, [0.3], torch.float32, CLOCK))
    assert [(row.status, row.note) for row in rows] == [("unmeasured", peer.note)] * 2
    assert all(row.off is not None and row.off < 1e-5 for row in rows)


def test_an_adapter_whose_package_cannot_be_imported_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn.cute", None)
    peer = load(PEERS["flash-attn-4"])[0]
    (row,) = peer_rows(peer, SHAPES, [0.3], torch.float32, CLOCK)
    assert row.status == "skipped" and row.note.startswith("not importable: ")
