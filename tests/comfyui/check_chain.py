"""Runs in ComfyUI's Python: how the patched model gets on with other nodes' attention, in either order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import host
import torch
from check_models import almost_dense
from toy_runs import LAYERS, BrokenCore, Foreign, difference, failing, half_dense, node, run, wan

CHECKS, check = host.registry()


@check("an override set before ours serves the dense calls")
def _() -> None:
    foreign = Foreign()
    patched, handle = host.apply(foreign.overwrite(wan()))
    run(patched)
    assert foreign.calls == {False: 2 * LAYERS} and handle.report.calls_sparse == 2 * LAYERS


@check("an override that later overwrote ours serves the dense calls")
def _() -> None:
    foreign = Foreign()
    patched, handle = host.apply(wan())
    run(foreign.overwrite(patched))
    assert foreign.calls == {False: 2 * LAYERS} and handle.report.calls_sparse == 2 * LAYERS


@check("a later override that chains ours meets us once")
def _() -> None:
    foreign = Foreign()
    patched, handle = host.apply(wan(), schedule=half_dense())
    run(foreign.chain(patched), steps=4)
    assert handle.report.calls_sparse == 2 * LAYERS
    assert foreign.calls == {True: 2 * LAYERS, False: 4 * LAYERS}
    assert len(handle.report.calls) == 8 * LAYERS


@check("the host's own Model Attention Backend, before or after ours")
def _() -> None:
    import comfy.ldm.modules.attention as attention

    backend = node("nodes_model_advanced", "ModelAttentionBackend")()
    calls: Counter[bool] = Counter()
    original = attention.REGISTERED_ATTENTION_FUNCTIONS["pytorch"]

    def counted(q: torch.Tensor, k: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls[q.shape == k.shape] += 1
        return original(q, k, *args, **kwargs)

    def after() -> tuple[Any, Any]:
        patched, handle = host.apply(wan(), schedule=half_dense())
        return backend.patch(patched, "pytorch attention")[0], handle

    def before() -> tuple[Any, Any]:
        return host.apply(backend.patch(wan(), "pytorch attention")[0], schedule=half_dense())

    attention.REGISTERED_ATTENTION_FUNCTIONS["pytorch"] = counted
    try:
        for make in (after, before):
            calls.clear()
            patched, handle = make()
            run(patched, steps=4)
            assert handle.report.calls_sparse == 2 * LAYERS
            assert calls == {True: 2 * LAYERS, False: 4 * LAYERS}, calls
    finally:
        attention.REGISTERED_ATTENTION_FUNCTIONS["pytorch"] = original


@check("keyword arguments and options of hosts to come are passed on, and the call is served")
def _() -> None:
    import comfy.ldm.wan.model as wan_model

    seen: list[Any] = []

    def foreign(func: Any, *args: Any, unheard_of: str = "", **kwargs: Any) -> torch.Tensor:
        seen.append((unheard_of, kwargs["transformer_options"]["new_key"]))
        return func(*args, **kwargs)

    original = wan_model.optimized_attention
    model = Foreign.put(wan(), foreign)
    model.model_options["transformer_options"]["new_key"] = "new value"
    patched, handle = host.apply(model, schedule=half_dense())
    plain = run(host.apply(wan(), schedule=half_dense())[0], steps=4)
    wan_model.optimized_attention = lambda *args, **kwargs: original(*args, unheard_of="of tomorrow", **kwargs)
    try:
        out = run(patched, steps=4)
    finally:
        wan_model.optimized_attention = original
    assert torch.equal(out, plain) and handle.report.calls_sparse == 2 * LAYERS
    assert seen == [("of tomorrow", "new value")] * (6 * LAYERS)


@check("an error of another node's attention stays that node's")
def _() -> None:
    class TheirError(Exception):
        pass

    model = Foreign.put(wan(), failing(TheirError("theirs")))
    patched, handle = host.apply(model)
    try:
        run(patched)
    except TheirError:
        pass
    else:
        raise AssertionError("their error was swallowed")
    assert "error" not in handle.report.calls_dense() and handle.report.notes == []


@check("a replaced attention forward is found and named")
def _() -> None:
    model = wan()
    network = model.model.diffusion_model
    patched, handle = host.apply(model)
    for layer in range(LAYERS):
        name = f"diffusion_model.blocks.{layer}.self_attn.forward"
        patched.add_object_patch(name, lambda x, *args, **kwargs: torch.zeros_like(x))
        run(patched)
        assert any(name in note for note in handle.report.notes), handle.report.notes
        assert handle.report.calls_sparse == 2 * (LAYERS - 1 - layer)
    assert any("never saw it" in note for note in handle.report.notes), handle.report.notes
    assert network is patched.model.diffusion_model


@check("a patched cross-attention (NAG) does not concern us")
def _() -> None:
    model = wan()
    cross = model.model.diffusion_model.blocks[0].cross_attn
    original = cross.forward
    patched, handle = host.apply(model)
    patched.add_object_patch(
        "diffusion_model.blocks.0.cross_attn.forward", lambda *args, **kwargs: 0.5 * original(*args, **kwargs)
    )
    run(patched)
    assert handle.report.calls_sparse == 2 * LAYERS and handle.report.notes == []


@check("Multi/InfiniteTalk: self-attention sparse, the audio's attention as it was, one and two speakers")
def _() -> None:
    try:
        from comfy.ldm.wan.model_multitalk import (
            MultiTalkCrossAttnPatch,
            MultiTalkGetAttnMapPatch,
            SingleStreamMultiAttention,
        )
    except ImportError:
        raise host.Absent("this ComfyUI has no InfiniteTalk") from None
    import comfy.ops

    generator = torch.Generator().manual_seed(5)
    blocks = []
    for _ in range(LAYERS):
        audio = SingleStreamMultiAttention(
            128, 32, num_heads=2, qkv_bias=True, device="cpu", dtype=torch.float32, operations=comfy.ops.manual_cast
        )
        for parameter in audio.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        blocks.append(SimpleNamespace(audio_cross_attn=audio, norm_x=torch.nn.Identity()))

    class Patch(MultiTalkCrossAttnPatch):
        def models(self) -> list[Any]:
            return []  # nothing for the host to load

    outputs = []
    for speakers in (1, 2):
        model = wan()
        # The first frame's 3x5 tokens: left half one speaker, right half the other.
        masks = None if speakers == 1 else torch.tensor([[1, 1, 0, 0, 0] * 3, [0, 0, 0, 1, 1] * 3]).float()
        patch = Patch(SimpleNamespace(model=SimpleNamespace(blocks=blocks)), ref_target_masks=masks)
        model.set_model_patch(patch, "attn2_patch")
        model.set_model_patch(MultiTalkGetAttnMapPatch(masks), "attn1_patch")
        embeds = torch.rand(1, 3, 4 * speakers, 32, generator=generator)
        model.model_options["transformer_options"]["audio_embeds"] = embeds
        patched, handle = host.apply(model, schedule=almost_dense())
        plain = run(model)
        assert difference(run(patched), plain) < 1e-4, speakers
        assert handle.report.calls_sparse == 2 * LAYERS
        # The audio's attention takes no transformer_options, so it reaches no node; what we see besides is the text's.
        assert handle.report.calls_dense() == {"not self-attention": 2 * LAYERS}
        outputs.append(plain)
    silent = run(wan())
    assert not any(torch.equal(out, silent) for out in outputs) and not torch.equal(*outputs), "the audio does nothing"


@check("the host's record of allocations stops for our calls, not for its own")
def _() -> None:
    try:
        from comfy import model_prefetch
    except ImportError:
        raise host.Absent("this ComfyUI has no model_prefetch") from None
    if hasattr(model_prefetch, "pause_malloc_graph"):
        raise host.Absent("this ComfyUI has the real pause_malloc_graph: nothing to stand in for")
    paused = [0]

    @contextmanager
    def pause_malloc_graph() -> Iterator[None]:
        paused[0] += 1
        try:
            yield
        finally:
            paused[0] -= 1

    seen = {"sparse": set(), "dense": set()}

    def dense(func: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen["dense"].add(paused[0])
        return func(*args, **kwargs)

    core = host.pack("draftattn_core.run.sparse_calls")
    original = core.attend

    def attend(*args: Any, **kwargs: Any) -> Any:
        seen["sparse"].add(paused[0])
        return original(*args, **kwargs)

    patched, _ = host.apply(Foreign.put(wan(), dense), dense_layers=(0,))
    model_prefetch.pause_malloc_graph = pause_malloc_graph
    try:
        with BrokenCore(attend):
            run(patched)
    finally:
        del model_prefetch.pause_malloc_graph
    assert seen == {"sparse": {1}, "dense": {0}} and paused == [0]
