"""Kandinsky 5: video and text are attended to apart."""

from __future__ import annotations

from .case import Case

CASES = (
    Case(
        "Kandinsky 5",
        "Kandinsky5",
        {
            "image_model": "kandinsky5",
            "in_text_dim": 64,
            "in_text_dim2": 32,
            "time_dim": 32,
            "model_dim": 128,
            "ff_dim": 64,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
        },
        (16, 3, 6, 10),
        (3, 3, 5),
        pooled=32,
    ),
)
