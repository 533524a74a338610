"""MiniMax-H3: brings a sparse attention of its own, so it runs dense."""

from __future__ import annotations

from .case import Case

CASES = (
    Case(
        "MiniMax-H3",
        "MiniMaxH3",
        {
            "image_model": "minimax_h3",
            "hidden_size": 128,
            "num_layers": 2,
            "token_refiner_num_layers": 1,
            "num_attention_heads": 1,
            "attention_head_dim": 128,
            "ffn_hidden_size": 64,
            "text_dim": 64,
            "timestep_input_dim": 32,
            "time_embed_hidden_size": 64,
            "time_embed_dim": 32,
        },
        (24, 3, 6, 10),
        (3, 3, 5),
        text=(5, 64),
        audio=(32, 2, 8),
        dense="Model Sparse Attention",
        dense_reason="unknown token grid",
    ),
)
