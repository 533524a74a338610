"""Runs in ComfyUI's Python: the layout of every model, token by token, and density 1 against the unpatched model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import host
import torch
from model_cases import CASES, Case


class Spy:
    """Stands in for `Calls.attention`: keeps what the core was told, and lets the call through."""

    def __init__(self) -> None:
        self.served = host.pack("draftattn_core.run.calls").Calls
        self.original = self.served.attention
        self.calls: list[dict[str, Any]] = []

    def __enter__(self) -> Spy:
        spy = self

        def attention(self: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **known: Any) -> torch.Tensor:
            spy.calls.append({"q": q.clone(), **known})
            return spy.original(self, q, k, v, **known)

        self.served.attention = attention
        return self

    def __exit__(self, *_: object) -> None:
        self.served.attention = self.original


def token_map(case: Case, model: Any) -> tuple[list[int], list[dict[str, Any]]]:
    """For every token of the first self-attention, the raster index of the latent patch it shows, -1 for none.

    The latent is marked patch by patch with the bits of the patch's raster index; before any attention has mixed
    tokens, exactly those queries change whose own patch was marked.
    """
    patched, _ = host.apply(model)
    latent = torch.zeros(1, *case.latent)
    noise = host.noise_like(latent)
    started = streams(case, latent)
    (_, t, h, w), (p_t, p_h, p_w) = case.latent, case.patch
    grid = (-(-t // p_t), -(-h // p_h), -(-w // p_w))

    def first_queries(mark: Callable[[int], bool] | None) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        marked = noise.clone()
        for index in range(grid[0] * grid[1] * grid[2] if mark else 0):
            if mark and mark(index):
                i_t, i_h, i_w = index // (grid[1] * grid[2]), index // grid[2] % grid[1], index % grid[2]
                # The last frame, row and column of the patch: the host pads odd sizes with copies of the first ones.
                frame, row, column = min(t, (i_t + 1) * p_t), min(h, (i_h + 1) * p_h), min(w, (i_w + 1) * p_w)
                marked[:, :, frame - 1, row - 1, column - 1] += 1.0
        with Spy() as spy:
            noised = streams(case, marked)
            host.sample(patched, started, case.conditioning(), steps=1, noise=noised, noise_mask=noise_mask(case))
        return spy.calls[0]["q"], spy.calls

    base, calls = first_queries(None)

    def changed(mark: Callable[[int], bool]) -> list[bool]:
        return (first_queries(mark)[0] != base).any(-1).any(1)[0].tolist()

    shown = changed(lambda index: True)
    tokens = [0 if own else -1 for own in shown]
    for bit in range((grid[0] * grid[1] * grid[2] - 1).bit_length()):
        for token, hit in enumerate(changed(lambda index, bit=bit: bool(index >> bit & 1))):
            tokens[token] += hit << bit
    return tokens, calls


def streams(case: Case, video: torch.Tensor) -> Any:
    """The latent of a case: its video, with the audio of models that have one."""
    if case.audio is None:
        return video
    from comfy.nested_tensor import NestedTensor

    return NestedTensor([video, 0.5 * host.noise_like(torch.zeros(1, *case.audio), seed=11)])


def noise_mask(case: Case) -> torch.Tensor | None:
    """Of the host's image to video: the first frame is kept."""
    if not case.kept:
        return None
    mask = torch.ones(1, 1, *case.latent[1:])
    mask[:, :, 0] = 0.0
    return mask


def sampled(case: Case, model: Any) -> torch.Tensor:
    """Video of a run of 2 steps."""
    latent = torch.zeros(1, *case.latent)
    noise = streams(case, host.noise_like(latent))
    more = {"noise": noise, "sampler": case.sampler, "noise_mask": noise_mask(case)}
    out = host.sample(model, streams(case, latent), case.conditioning(), **more)
    return out if case.audio is None else out.unbind()[0]


def check_case(case: Case) -> None:
    model = host.build(case.config, case.unet)
    if "context_latents" in case.cond and not hasattr(model.model, "resize_cond_for_context_window"):
        raise host.Absent("this ComfyUI has no context latents")
    if case.dense:
        check_dense(case, model)
        return
    tokens, calls = token_map(case, model)

    grid = case.grid[0] * case.grid[1] * case.grid[2]
    from_latent = [-1] * case.kept + list(range(case.kept, grid - case.given_first - case.given))
    expected = [-1] * (case.before + case.given_first) + from_latent + [-1] * (case.given + case.after)
    assert tokens == expected, f"tokens {tokens}, expected {expected}"

    layout = {(call["grid"].as_tuple(), call["extra_before"], call["extra_after"]) for call in calls}
    assert layout == {(case.grid, case.before, case.after)}, layout
    layers = [call["position"].layer for call in calls]
    # A control block of VACE runs right after its main block and is numbered behind all of those.
    ordered = sorted(layers) if hasattr(model.model.diffusion_model, "vace_blocks") else layers
    assert ordered == list(range(case.layers)), layers
    assert {call["position"].layers for call in calls} == {case.layers}
    assert all((call["key_bias"] is not None) == case.key_bias for call in calls)

    plain = sampled(case, model)
    assert plain.isfinite().all() and plain.std() > 0
    everything, handle = host.apply(model, schedule=almost_dense())
    out = sampled(case, everything)
    assert handle.report.calls_sparse == 2 * case.layers, handle.report.summary()
    error = float((out - plain).norm() / plain.norm())
    assert error < 1e-4, f"density 1 differs from the unpatched model by {error:.1e}"

    sparse, handle = host.apply(model, sparsity=0.5, blocks=(8, 8), tile=(2, 2, 2))
    out = sampled(case, sparse)
    assert handle.report.calls_sparse == 2 * case.layers, handle.report.summary()
    unexpected = set(handle.report.calls_dense()) - {"not self-attention"}
    assert not unexpected, handle.report.calls_dense()
    assert out.isfinite().all() and not torch.equal(out, plain)
    assert torch.equal(sampled(case, model), plain), "the unpatched model changed"


def check_dense(case: Case, model: Any) -> None:
    """A model that cannot run sparse: unchanged to the bit, its calls under one reason, and a note that says why."""
    if "guide_attention_entries" in case.cond and case.dense_reason == "mask":
        import comfy.ldm.lightricks.model

        if not hasattr(comfy.ldm.lightricks.model, "GuideAttentionMask"):
            raise host.Absent("this ComfyUI does not mask LTX guides")
    plain = sampled(case, model)
    assert plain.isfinite().all() and plain.std() > 0
    patched, handle = host.apply(model, sparsity=0.5)
    assert torch.equal(sampled(case, patched), plain)
    report = handle.report
    assert report.calls_sparse == 0
    reasons = {case.dense_reason} - {""}
    assert set(report.calls_dense()) - {"not self-attention"} == reasons, report.calls_dense()
    assert any(case.dense in note for note in report.notes), report.notes
    assert any("nothing was sparse" in note for note in report.notes), report.notes


def almost_dense() -> Any:
    """Every block computed by the sparse path: the schedule keeps density 1 itself for the host's own attention."""
    return host.pack("draftattn_core.run.schedule").Schedule(((0.0, 1.0 - 1e-9),))


CHECKS = {case.name: (lambda case=case: check_case(case)) for case in CASES}
