"""Runs in ComfyUI's Python: what the user is told: counts, line, text under the node, remedies, and strict."""

from __future__ import annotations

import re
import types
from typing import Any

import host
import torch
import unknown_model
from toy_runs import LATENT, LAYERS, Foreign, Logged, failing, half_dense, run, wan

CHECKS, check = host.registry()


@check("every call of the host is counted exactly once")
def _() -> None:
    foreign = Foreign()
    patched, handle = host.apply(foreign.overwrite(wan()), schedule=half_dense())
    run(patched, steps=4)
    report = handle.report
    assert report.calls_sparse == 2 * LAYERS
    assert report.calls_dense() == {"not self-attention": 4 * LAYERS, "schedule": 2 * LAYERS}
    assert foreign.calls == {True: 2 * LAYERS, False: 4 * LAYERS}


@check("the node is told how the run goes")
def _() -> None:
    told: list[str] = []
    adapter, presets = host.pack("nodes.host.adapter"), host.pack("nodes.inputs.presets")
    choices = presets.Choices(preset="custom", dense_start=0.0, min_tokens=0, blocks=(16, 8), tail="linear1")
    patched, handle = adapter.apply_draft_attention(wan(), choices, told.append)
    run(patched, steps=3)
    assert told[:2] == ["step 1 of 3", f"step 2 of 3: {LAYERS} of {LAYERS} self-attention calls sparse"], told
    assert told[-1] == handle.report.summary() and f"{3 * LAYERS} of {3 * LAYERS}" in told[-1]


@check("a node that cannot be told does not stop the run")
def _() -> None:
    adapter, presets = host.pack("nodes.host.adapter"), host.pack("nodes.inputs.presets")
    choices = presets.Choices(preset="custom", dense_start=0.0, min_tokens=0, blocks=(16, 8), tail="linear1")
    patched, handle = adapter.apply_draft_attention(wan(), choices, failing(OSError("connection lost")))
    run(patched, steps=3)
    assert handle.report.calls_sparse == 3 * LAYERS and handle.report.finished is not None


@check("a listener sees every sparse call, and may fail")
def _() -> None:
    patched, handle = host.apply(wan())
    seen = []
    kind = host.pack("draftattn_core.run.events").CallDone
    handle.events.subscribe(kind, failing(RuntimeError("no picture")))
    forget = handle.events.subscribe(kind, lambda event: seen.append(event.position.layer))
    run(patched)
    assert seen == [0, 1] * 2
    forget()
    assert not handle.events.wanted(kind), "the one that failed was dropped"
    assert any("no picture" in note for note in handle.report.notes)


@check("a small video is dense, with the reason and a remedy")
def _() -> None:
    model = wan()
    patched, handle = host.apply(model, min_tokens=12000)
    assert torch.equal(run(patched), run(model))
    assert handle.report.calls_dense()["too few tokens"] == 2 * LAYERS
    assert any("min_tokens" in note for note in handle.report.notes)


@check("an unknown model is dense, with the reason and a remedy")
def _() -> None:
    told: list[str] = []
    unknown = (unknown_model.LATENT, unknown_model.TEXT)
    model = Foreign().overwrite(unknown_model.flux())
    choices = host.pack("nodes.inputs.presets").Choices()
    patched, handle = host.pack("nodes.host.adapter").apply_draft_attention(model, choices, told.append)
    assert torch.equal(run(patched, *unknown), run(model, *unknown))
    assert set(handle.report.calls_dense()) == {"unknown token grid"}
    assert "remove the node" in told[-1]
    assert any("Flux" in note for note in handle.report.notes), handle.report.notes
    assert any("not supported" in note for note in handle.report.notes), handle.report.notes


@check("MiniMax-H3 points to the host's own node")
def _() -> None:
    try:
        from comfy.ldm.minimax.model import MiniMaxH3Model
    except ImportError:
        raise host.Absent("this ComfyUI has no MiniMax-H3") from None
    layouts = host.pack("nodes.host.layouts")
    found = layouts.describe(MiniMaxH3Model.__new__(MiniMaxH3Model), {"x": LATENT})
    assert "BlockSparseAttention" in found.message


@check("one line tells the story of a run")
def _() -> None:
    patched, handle = host.apply(wan(), schedule=half_dense(), dense_layers=(0,))
    with Logged() as logged:
        run(patched, steps=4)
    line = logged.lines[-1]
    assert line == handle.report.summary() and sum("DraftAttention" in line for line in logged.lines) == 1
    number = r"\d+\.\d+"
    assert re.fullmatch(
        rf"DraftAttention: 2 of 8 self-attention calls sparse at density {number}; dense: 4 dense layer, 2 schedule; "
        rf"executed density {number}; sparse step {number}x (faster|slower) than dense step",
        line,
    ), line
    assert len(handle.report.step_seconds()) == 4
    assert 0 < sum(handle.report.step_seconds().values()) < handle.report.seconds


@check("strict refuses before sampling starts, and says why")
def _() -> None:
    foreign = Foreign()

    def refusal(patched: Any, **given: Any) -> str:
        patched.add_wrapper_with_key("sampler_sample", "check", failing(AssertionError("sampling had begun")))
        try:
            run(patched, **given)
        except ValueError as error:
            return str(error)
        raise AssertionError("strict let it pass")

    small, _ = host.apply(foreign.overwrite(wan()), strict=True, min_tokens=12000)
    assert "lower min_tokens" in refusal(small)
    replaced, _ = host.apply(foreign.overwrite(wan()), strict=True)
    replaced.add_object_patch("diffusion_model.blocks.0.self_attn.forward", lambda x, *args, **kwargs: x)
    assert "blocks.0.self_attn.forward" in refusal(replaced)
    unserved, _ = host.apply(foreign.overwrite(wan()), strict=True)
    strict = host.pack("nodes.host.strict")
    original, strict.choose_backend = strict.choose_backend, failing(ValueError("no backend can serve this call"))
    try:
        assert "no backend can serve this call" in refusal(unserved)
    finally:
        strict.choose_backend = original
    assert not foreign.calls, "sampling had begun"
    unknown, _ = host.apply(unknown_model.flux(), strict=True)
    assert "Flux" in refusal(unknown, latent=unknown_model.LATENT, positive=unknown_model.TEXT)
    fine, handle = host.apply(wan(), strict=True)
    run(fine)
    assert handle.report.calls_sparse == 2 * LAYERS


def like_raylight(network: Any) -> None:
    """Gives the self-attention modules a `forward` as raylight's Wan has it, which asks for none of the host."""

    def usp_self_attn_forward(
        self: Any, x: torch.Tensor, freqs: Any, transformer_options: Any = None, **kwargs: Any
    ) -> Any:
        return self.o(self.v(x))

    usp_self_attn_forward.__module__ = "raylight.diffusion_models.wan.xdit_context_parallel"
    for block in network.blocks:
        block.self_attn.forward = types.MethodType(usp_self_attn_forward, block.self_attn)


@check("raylight's own attention is told in one line, also where it comes with the loading of the model")
def _() -> None:
    patched, handle = host.apply(wan())
    taken_over = False

    def loading(executor: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal taken_over
        if not taken_over:
            like_raylight(patched.model.diffusion_model)
            taken_over = True
        return executor(*args, **kwargs)

    patched.add_wrapper_with_key("sampler_sample", "raylight", loading)
    with Logged() as logged:
        run(patched)
    assert handle.report.calls_sparse == 0
    lines = [line for line in logged.lines if "raylight, over several GPUs" in line]
    assert len(lines) == 1 and "nothing was sparse" in lines[0], logged.lines
    strict, _ = host.apply(patched, strict=True)
    try:
        run(strict)
    except ValueError as error:
        assert "raylight" in str(error)
    else:
        raise AssertionError("strict let raylight pass")
