"""Runs in ComfyUI's Python: HunyuanVideo 1.5 with every kind of condition, at density 1 against the host alone.

The host (to 0.33) makes its text mask for one text of one video: it cannot take a mask with batch 2, with stacked
conditions or with vision tokens, so those are checked without a mask and the mask in split conditions.
"""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import host
import torch
from check_models import Spy, almost_dense
from model_cases import HUNYUAN15

CHECKS, check = host.registry()
LAYERS = 3
STEPS = 2


def rand(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def condition(words: int, *, mask: int = 0, vision: int = 0, byt5: int = 0, image: Any = None, seed: int = 5) -> Any:
    """A text of `words` tokens, the last `mask` of them padding; `vision` and `byt5` tokens; a first-frame latent."""
    given: dict[str, Any] = {"pooled_output": None}
    if mask:
        given["attention_mask"] = torch.cat([torch.ones(1, words - mask), torch.zeros(1, mask)], 1).long()
    if vision:
        given["clip_vision_output"] = SimpleNamespace(
            last_hidden_state=rand(1, vision, 1152), penultimate_hidden_states=None
        )
    if byt5:
        given["conditioning_byt5small"] = rand(1, byt5, 1472)
    if image is not None:
        given["concat_latent_image"] = image
        given["concat_mask"] = torch.ones(1, 1, *image.shape[2:])
    return [[rand(1, words, 64, seed=seed), given]]


def same_as_the_host(shape: tuple[int, ...], positive: Any, negative: Any | None = None, cfg: float = 1.0) -> Any:
    """Run with every block through the sparse path, with half of them, and without us; returns what the core was told.

    Every block computed must give the host's own result; with half of them every video call must still be served.
    """
    model = host.build("HunyuanVideo15", HUNYUAN15)
    latent = torch.zeros(shape)

    def run(patched: Any) -> torch.Tensor:
        return host.sample(patched, latent, positive, negative, cfg=cfg, steps=STEPS)

    plain = run(model)
    assert plain.isfinite().all() and plain.std() > 0
    everything, handle = host.apply(model, schedule=almost_dense())
    with Spy() as spy:
        out = run(everything)
    error = float((out - plain).norm() / plain.norm())
    assert error < 1e-4, f"density 1 differs from the unpatched model by {error:.1e}"
    assert set(handle.report.calls_dense()) <= {"not self-attention"}, handle.report.calls_dense()
    assert handle.report.calls_sparse == len(spy.calls) and len(spy.calls) % (STEPS * LAYERS) == 0
    layers = [call["position"].layer for call in spy.calls]
    assert layers == list(range(LAYERS)) * (len(layers) // LAYERS), layers
    sparse, handle = host.apply(model, sparsity=0.5, blocks=(8, 8), tile=(2, 2, 2))
    out = run(sparse)
    assert handle.report.calls_sparse == len(spy.calls) and out.isfinite().all() and not torch.equal(out, plain)
    assert set(handle.report.calls_dense()) <= {"not self-attention"}, handle.report.calls_dense()
    return spy.calls


@check("HunyuanVideo 1.5: t2v and i2v at odd sizes, from one frame to many")
def odd_sizes() -> None:
    for t, h, w in ((1, 5, 7), (5, 7, 3), (3, 9, 13)):
        calls = same_as_the_host((1, 32, t, h, w), condition(5))
        assert {call["grid"].as_tuple() for call in calls} == {(t, h, w)}
        calls = same_as_the_host((1, 32, t, h, w), condition(5, vision=6, byt5=4, image=rand(1, 32, t, h, w)))
        assert {(call["grid"].as_tuple(), call["extra_before"]) for call in calls} == {((t, h, w), 15)}


@check("HunyuanVideo 1.5: batch 2, t2v and i2v, condition and uncondition stacked")
def batch() -> None:
    shape = (2, 32, 3, 5, 7)
    image = rand(1, 32, 3, 5, 7)
    calls = same_as_the_host(shape, condition(5))
    assert {call["q"].shape[0] for call in calls} == {2}
    calls = same_as_the_host(shape, condition(5), condition(5, seed=6), cfg=3.0)
    assert {(call["q"].shape[0], call["position"].branch) for call in calls} == {(4, "both")}
    full = {"vision": 6, "byt5": 4, "image": image}
    calls = same_as_the_host(shape, condition(5, **full), condition(5, seed=6, **full), cfg=3.0)
    assert {(call["q"].shape[0], call["extra_before"]) for call in calls} == {(4, 15)}


@check("HunyuanVideo 1.5: batch 2, texts of different length, t2v and i2v")
def lengths() -> None:
    shape = (2, 32, 3, 5, 7)
    image = rand(1, 32, 3, 5, 7)
    for more in ({}, {"vision": 6, "byt5": 4, "image": image}):
        extra = 10 if more else 0
        calls = same_as_the_host(shape, condition(9, **more), condition(4, seed=6, **more), cfg=3.0)
        seen = Counter((call["position"].branch, call["extra_before"]) for call in calls)
        assert seen == {("cond", 9 + extra): STEPS * LAYERS, ("uncond", 4 + extra): STEPS * LAYERS}, seen


@check("HunyuanVideo 1.5: text masks of different length, t2v and i2v")
def masks() -> None:
    shape = (1, 32, 3, 5, 7)
    for image in (None, rand(1, 32, 3, 5, 7)):
        positive, negative = condition(9, mask=2, image=image), condition(4, mask=1, seed=6, image=image)
        calls = same_as_the_host(shape, positive, negative, cfg=3.0)
        assert {call["extra_before"] for call in calls} == {9, 4}
        for call in calls:
            counted = [True] * 7 + [False] * 2 if call["extra_before"] == 9 else [True] * 3 + [False]
            assert (call["key_bias"][0] > -1e4).tolist() == counted
