"""Runs in ComfyUI's Python: how the patched model behaves beside other nodes, in odd runs and when something fails."""

from __future__ import annotations

import importlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import host
import torch
from check_models import Spy, almost_dense
from model_cases import CASES, HUNYUAN, HUNYUAN15, WAN

CHECKS: dict[str, Callable[[], None]] = {}
OVERRIDE = "optimized_attention_override"
LATENT = torch.zeros(1, 16, 3, 6, 10)
TEXT = CASES[0].conditioning()
LAYERS = 2


def check(name: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def keep(function: Callable[[], None]) -> Callable[[], None]:
        CHECKS[name] = function
        return function

    return keep


def wan() -> Any:
    return host.build("WAN21_T2V", {**WAN, "model_type": "t2v"})


def node(module: str, name: str) -> Any:
    """A node class of the host's own extras."""
    try:
        return getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    except (ImportError, AttributeError):
        raise host.Absent(f"this ComfyUI has no {name}") from None


def run(model: Any, latent: torch.Tensor = LATENT, positive: Any = TEXT, **more: Any) -> torch.Tensor:
    return host.sample(model, latent, positive, **more)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


class Foreign:
    """Another node's attention: exact, and counted by whether queries and keys are of one length."""

    def __init__(self) -> None:
        self.calls: Counter[bool] = Counter()

    def overwrite(self, model: Any) -> Any:
        """As Sage patches do: whatever was there is gone."""

        def override(func: Any, q: torch.Tensor, k: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            self.calls[q.shape == k.shape] += 1
            return func(q, k, *args, **kwargs)

        return self._put(model, override)

    def chain(self, model: Any) -> Any:
        """As a well-behaved node does: what was there stays in the chain."""
        previous = model.model_options["transformer_options"].get(OVERRIDE)

        def override(func: Any, q: torch.Tensor, k: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            self.calls[q.shape == k.shape] += 1
            if previous is not None:
                return previous(func, q, k, *args, **kwargs)
            return func(q, k, *args, **kwargs)

        return self._put(model, override)

    @staticmethod
    def _put(model: Any, override: Any) -> Any:
        patched = model.clone()
        options = patched.model_options["transformer_options"] = dict(patched.model_options["transformer_options"])
        options[OVERRIDE] = override
        return patched


@check("the patched model leaves the model it was made from alone")
def _() -> None:
    model = wan()
    before = run(model)
    patched, _ = host.apply(model)
    assert not torch.equal(run(patched), before)
    assert OVERRIDE not in model.model_options["transformer_options"]
    assert torch.equal(run(model), before)


@check("sparsity 0 is the unpatched model to the bit")
def _() -> None:
    model = wan()
    patched, handle = host.apply(model, sparsity=0.0)
    assert torch.equal(run(patched), run(model))
    assert handle.report.calls_dense() == {"schedule": 2 * LAYERS, "not self-attention": 2 * LAYERS}


@check("every call of the host is counted exactly once")
def _() -> None:
    foreign = Foreign()
    patched, handle = host.apply(foreign.overwrite(wan()), schedule=half_dense())
    run(patched, steps=4)
    report = handle.report
    assert report.calls_sparse == 2 * LAYERS
    assert report.calls_dense() == {"not self-attention": 4 * LAYERS, "schedule": 2 * LAYERS}
    assert foreign.calls == {True: 2 * LAYERS, False: 4 * LAYERS}


def half_dense() -> Any:
    return host.pack("draftattn_core.schedule").constant(0.25, warmup=0.49)


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


@check("the host's own Model Attention Backend node after ours")
def _() -> None:
    patched, handle = host.apply(wan())
    patched = patched.clone()
    if not hasattr(patched, "set_model_optimized_attention"):
        raise host.Absent("this ComfyUI has no set_model_optimized_attention")
    calls = Counter()

    def attention(q: torch.Tensor, k: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        import comfy.ldm.modules.attention

        calls[q.shape == k.shape] += 1
        return comfy.ldm.modules.attention.attention_pytorch(q, k, *args, **kwargs)

    patched.set_model_optimized_attention(attention)
    run(patched)
    assert handle.report.calls_sparse == 2 * LAYERS and calls == {False: 2 * LAYERS}


@check("applied twice, the later choices count, once")
def _() -> None:
    once, first = host.apply(wan(), sparsity=0.75)
    twice, second = host.apply(once, sparsity=0.25)
    run(twice)
    assert first.report.calls == []
    assert second.report.calls_sparse == 2 * LAYERS and len(second.report.calls) == 4 * LAYERS
    assert abs(second.report.sparse_density() - 0.75) < 0.1


@check("a run leaves the model's options as they were")
def _() -> None:
    patched, handle = host.apply(wan())
    before = dict(patched.model_options["transformer_options"])
    run(patched)
    assert patched.model_options["transformer_options"] == before
    assert len(handle.session.cache) == 0, "index tables outlived the run"


@check("a run that is interrupted leaves nothing behind")
def _() -> None:
    class Interrupted(Exception):
        pass

    def interrupt(*args: Any) -> None:
        raise Interrupted

    patched, handle = host.apply(wan())
    try:
        run(patched, callback=interrupt)
    except Interrupted:
        pass
    else:
        raise AssertionError("the interruption did not arrive")
    assert handle.report.finished is not None
    run(patched)
    assert handle.report.calls_sparse == 2 * LAYERS


@check("two runs of different sizes on one model")
def _() -> None:
    patched, handle = host.apply(wan())
    run(patched)
    small = handle.report
    run(patched, torch.zeros(1, 16, 5, 7, 9))
    assert handle.grid == (5, 4, 5) and handle.report is not small
    assert small.calls_sparse == handle.report.calls_sparse == 2 * LAYERS


@check("batch 2")
def _() -> None:
    model = wan()
    patched, handle = host.apply(model, schedule=almost_dense())
    latent = torch.zeros(2, 16, 3, 7, 9)
    assert difference(run(patched, latent), run(model, latent)) < 1e-4
    assert handle.report.calls_sparse == 2 * LAYERS


@check("CFG 1 runs the condition only")
def _() -> None:
    patched, handle = host.apply(wan())
    run(patched, cfg=1.0, negative=[[torch.zeros(1, 5, 64), {}]])
    assert {call.position.branch for call in handle.report.calls if call.position} == {"cond"}


@check("stacked condition and uncondition are one call")
def _() -> None:
    model = wan()
    patched, handle = host.apply(model, schedule=almost_dense())
    more = {"cfg": 3.0, "negative": [[torch.zeros(1, 5, 64), {}]]}
    assert difference(run(patched, **more), run(model, **more)) < 1e-4
    assert {call.position.branch for call in handle.report.calls if call.position} == {"both"}
    assert handle.report.calls_sparse == 2 * LAYERS


@check("split condition and uncondition, texts of different length")
def _() -> None:
    model = wan()
    patched, handle = host.apply(model, schedule=almost_dense())
    more = {"cfg": 3.0, "negative": [[torch.zeros(1, 7, 64), {}]]}
    assert difference(run(patched, **more), run(model, **more)) < 1e-4
    branches = Counter(call.position.branch for call in handle.report.calls if call.position)
    assert branches == {"cond": 2 * LAYERS, "uncond": 2 * LAYERS}
    assert {call.position.step for call in handle.report.calls if call.position} == {0, 1}


@check("split condition on HunyuanVideo, texts of different length and a mask on one")
def _() -> None:
    model = host.build("HunyuanVideo", HUNYUAN)
    patched, handle = host.apply(model, schedule=almost_dense())
    pooled = {"pooled_output": torch.zeros(1, 32)}
    positive = [[torch.ones(1, 5, 64), {**pooled, "attention_mask": torch.tensor([[1, 1, 1, 1, 0]])}]]
    more = {"positive": positive, "cfg": 3.0, "negative": [[torch.zeros(1, 3, 64), pooled]]}
    assert difference(run(patched, **more), run(model, **more)) < 1e-4
    assert handle.report.calls_sparse == 2 * 2 * 4


@check("split condition on HunyuanVideo 1.5, ByT5 text and vision on one, a mask on the other")
def _() -> None:
    model = host.build("HunyuanVideo15", HUNYUAN15)
    patched, handle = host.apply(model, schedule=almost_dense())
    vision = SimpleNamespace(last_hidden_state=torch.rand(1, 6, 1152), penultimate_hidden_states=None)
    byt5 = torch.rand(1, 4, 1472)
    given = {"pooled_output": None, "conditioning_byt5small": byt5, "clip_vision_output": vision}
    positive = [[torch.rand(1, 5, 64), given]]
    negative = [[torch.rand(1, 3, 64), {"pooled_output": None, "attention_mask": torch.tensor([[1, 1, 0]])}]]
    more = {"latent": torch.zeros(1, 32, 3, 5, 7), "positive": positive, "cfg": 3.0, "negative": negative}
    with Spy() as spy:
        out = run(patched, **more)
    assert difference(out, run(model, **more)) < 1e-4
    seen = Counter((call["extra_before"], call["key_bias"] is not None) for call in spy.calls)
    assert seen == {(15, False): 2 * 3, (3, True): 2 * 3}, seen
    assert set(handle.report.calls_dense()) == {"not self-attention"}


@check("text as long as the video is not taken for it")
def _() -> None:
    model = wan()
    patched, handle = host.apply(model, schedule=almost_dense())
    text = [[torch.rand(1, 3 * 3 * 5, 64), {}]]
    assert difference(run(patched, positive=text), run(model, positive=text)) < 1e-4
    assert handle.report.calls_sparse == 2 * LAYERS
    assert handle.report.calls_dense() == {"not self-attention": 2 * LAYERS}


@check("EasyCache skips steps and the schedule still lands by noise level")
def _() -> None:
    easycache = node("nodes_easycache", "EasyCacheNode")
    seen = []
    for first in ("ours", "theirs"):
        model = wan()
        if first == "theirs":
            model = easycache.execute(model, 3.0, 0.15, 0.95, False).args[0]
        patched, handle = host.apply(model)
        if first == "ours":
            patched = easycache.execute(patched, 3.0, 0.15, 0.95, False).args[0]
        run(patched, steps=10)
        progress = sorted({round(call.position.progress, 3) for call in handle.report.calls if call.position})
        assert 0 < len(progress) < 10, progress
        assert all(abs(value * 10 - round(value * 10)) < 0.02 for value in progress), progress
        assert handle.report.calls_sparse == LAYERS * len(progress)
        seen.append(progress)
    assert seen[0] == seen[1]


@check("context windows: the grid follows each window")
def _() -> None:
    windows = node("nodes_context_windows", "WanContextWindowsManualNode")
    model = windows.execute(wan(), 21, 8, "standard_static", 1, False, "pyramid", False).args[0]
    latent = torch.zeros(1, 16, 9, 6, 10)
    patched, handle = host.apply(model, schedule=almost_dense())
    with Spy() as spy:
        out = run(patched, latent)
    frames = {call["grid"].t for call in spy.calls}
    assert frames <= {6, 7}, frames  # windows of 6, later ones with the host's anchor frame in front
    assert all(call["q"].shape[2] == call["grid"].tokens for call in spy.calls)
    assert len(spy.calls) > 2 * LAYERS and set(handle.report.calls_dense()) == {"not self-attention"}
    assert difference(out, run(model, latent)) < 1e-4


@check("second-order samplers: sigmas off the schedule")
def _() -> None:
    for sampler in ("heun", "dpm_2", "dpmpp_2s_ancestral", "uni_pc"):
        patched, handle = host.apply(wan())
        run(patched, steps=4, sampler=sampler)
        calls = [call for call in handle.report.calls if call.position]
        assert len(calls) == handle.report.calls_sparse and len(calls) % LAYERS == 0, (sampler, handle.report.summary())
        assert len({call.position.step for call in calls}) >= 4
        assert all(0.0 <= call.position.progress <= 1.0 for call in calls)


@check("progress is the sampler's own percent, with a shift set after us")
def _() -> None:
    shift = node("nodes_model_advanced", "ModelSamplingSD3")
    for value in (1.0, 3.0, 8.0):
        patched, handle = host.apply(wan())
        (patched,) = shift().patch(patched, value)
        run(patched, steps=10)
        progress = sorted({call.position.progress for call in handle.report.calls if call.position})
        assert len(progress) == 10
        assert all(abs(found - i / 10) < 0.002 for i, found in enumerate(progress)), (value, progress)


@check("two experts: one schedule lands at the same noise in both halves")
def _() -> None:
    schedule = host.pack("draftattn_core.schedule").constant(0.25, warmup=0.35)
    whole, whole_handle = host.apply(wan(), schedule=schedule)
    straight = run(whole, steps=10)
    high, high_handle = host.apply(wan(), schedule=schedule)
    low, low_handle = host.apply(wan(), schedule=schedule)
    noise = host.noise_like(LATENT)
    half = run(high, steps=10, noise=noise, start_step=0, last_step=5, force_full_denoise=False)
    out = run(low, half, steps=10, noise=torch.zeros_like(half), disable_noise=True, start_step=5, last_step=10)

    def by_progress(handle: Any) -> list[tuple[float, bool]]:
        calls = [call for call in handle.report.calls if call.position and call.position.layer == 0]
        return [(round(call.position.progress, 3), call.reason is None) for call in calls]

    expected = [(i / 10, i >= 4) for i in range(10)]
    assert by_progress(whole_handle) == expected, by_progress(whole_handle)
    assert by_progress(high_handle) + by_progress(low_handle) == expected
    assert difference(out, straight) < 1e-4


@check("the length of the whole trajectory is known in each half")
def _() -> None:
    class Spec:
        def __init__(self) -> None:
            self.asked: list[int] = []

        def resolve(self, steps: int) -> Any:
            self.asked.append(steps)
            return almost_dense()

    spec = Spec()
    patched, _ = host.apply(wan(), schedule=spec)
    spec.asked.clear()
    run(patched, steps=10)
    run(patched, steps=10, start_step=0, last_step=5)
    run(patched, steps=10, start_step=5, last_step=10)
    run(patched, steps=10, denoise=0.5)
    assert spec.asked == [10, 10, 10, 20], spec.asked


@check("torch.compile of the whole model")
def _() -> None:
    try:
        from comfy_api.torch_helpers import set_torch_compile_wrapper
    except ImportError:
        raise host.Absent("this ComfyUI has no set_torch_compile_wrapper") from None
    patched, handle = host.apply(wan())
    plain = run(patched)
    compiled = patched.clone()
    set_torch_compile_wrapper(compiled, backend="eager")
    out = run(compiled)
    assert handle.report.calls_sparse == 2 * LAYERS, handle.report.summary()
    assert difference(out, plain) < 1e-4


@check("a LoRA on the model and a LoRA hook on one condition")
def _() -> None:
    import comfy.hooks

    model = wan()
    key = "diffusion_model.blocks.0.self_attn.q.weight"
    model.add_patches({key: ("diff", (torch.randn(128, 128) * 0.05,))})
    hook = comfy.hooks.create_hook_lora({}, 1.0, 0.0)
    positive = comfy.hooks.set_hooks_for_conditioning(TEXT, hook)
    patched, handle = host.apply(model, schedule=almost_dense())
    more = {"positive": positive, "negative": [[torch.zeros(1, 5, 64), {}]], "cfg": 3.0}
    assert difference(run(patched, **more), run(model, **more)) < 1e-4
    assert set(handle.report.calls_dense()) == {"not self-attention"} and handle.report.calls_sparse >= 2 * LAYERS


@check("model unloaded and loaded again between runs")
def _() -> None:
    import comfy.model_management

    patched, handle = host.apply(wan())
    first = run(patched)
    comfy.model_management.unload_all_models()
    assert torch.equal(run(patched), first)
    assert handle.report.calls_sparse == 2 * LAYERS


@check("conditions computed in several threads at once")
def _() -> None:
    patched, handle = host.apply(wan(), schedule=almost_dense())
    results: dict[int, Any] = {}

    def in_threads(executor: Any, model: Any, conds: Any, x: torch.Tensor, timestep: Any, options: Any) -> Any:
        def work(frames: int) -> None:
            with torch.no_grad():  # as the host's own threads
                results[frames] = executor(model, conds, x[:, :, :frames].clone(), timestep, options)

        threads = [threading.Thread(target=work, args=(frames,)) for frames in (1, 2, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results[3]

    patched.add_wrapper_with_key("calc_cond_batch", "threads", in_threads)
    with Spy() as spy:
        out = run(patched)
    assert all(call["q"].shape[2] == call["grid"].tokens for call in spy.calls)
    assert set(handle.report.calls_dense()) == {"not self-attention"}, (handle.report.summary(), handle.report.notes)
    assert Counter(call["grid"].t for call in spy.calls) == dict.fromkeys((1, 2, 3), 2 * LAYERS)
    assert difference(out, run(wan())) < 1e-4


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


@check("InfiniteTalk's audio attention stays what it was")
def _() -> None:
    try:
        from comfy.ldm.wan.model_multitalk import MultiTalkCrossAttnPatch, SingleStreamMultiAttention
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

    model = wan()
    model.set_model_patch(Patch(SimpleNamespace(model=SimpleNamespace(blocks=blocks))), "attn2_patch")
    model.model_options["transformer_options"]["audio_embeds"] = torch.rand(1, 3, 4, 32, generator=generator)
    patched, handle = host.apply(model, schedule=almost_dense())
    plain = run(model)
    assert not torch.equal(plain, run(wan())), "the audio does nothing"
    assert difference(run(patched), plain) < 1e-4
    assert handle.report.calls_sparse == 2 * LAYERS


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

    session = host.pack("draftattn_core.session")
    original = session.attend

    def attend(*args: Any, **kwargs: Any) -> Any:
        seen["sparse"].add(paused[0])
        return original(*args, **kwargs)

    patched, _ = host.apply(Foreign._put(wan(), dense), dense_layers=(0,))
    model_prefetch.pause_malloc_graph = pause_malloc_graph
    try:
        with BrokenCore(attend):
            run(patched)
    finally:
        del model_prefetch.pause_malloc_graph
    assert seen == {"sparse": {1}, "dense": {0}} and paused == [0]


def failing(error: BaseException) -> Any:
    """Choices of a run whose backend raises."""

    def attend(*args: Any, **kwargs: Any) -> Any:
        raise error

    return attend


class BrokenCore:
    """The core's sparse call replaced by a function, for the time of a `with` block."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.module, self.function = host.pack("draftattn_core.session"), function
        self.original = self.module.attend

    def __enter__(self) -> None:
        self.module.attend = self.function

    def __exit__(self, *_: object) -> None:
        self.module.attend = self.original


@check("an error of ours makes the call dense, three make us stand aside")
def _() -> None:
    model = wan()
    plain = run(model, steps=4)
    patched, handle = host.apply(model)
    with BrokenCore(failing(RuntimeError("broken on purpose"))):
        out = run(patched, steps=4)
    assert torch.equal(out, plain)
    dense = handle.report.calls_dense()
    assert dense["error"] == 3 and dense["stood aside after errors"] == 4 * LAYERS - 3
    assert any("broken on purpose" in note for note in handle.report.notes)
    assert not torch.equal(run(patched, steps=4), plain), "the next run starts afresh"


@check("an error in our translation makes the call dense")
def _() -> None:
    model = wan()
    plain = run(model)
    patched, handle = host.apply(model)
    adapter = host.pack("nodes.adapter")
    original, adapter.classify = adapter.classify, failing(KeyError("broken on purpose"))
    try:
        out = run(patched)
    finally:
        adapter.classify = original
    assert torch.equal(out, plain)
    assert handle.report.calls_dense() == {"stood aside after errors": 4 * LAYERS - 3, "error": 3}


@check("a model call we cannot describe is dense and counted")
def _() -> None:
    model = wan()
    plain = run(model)
    adapter = host.pack("nodes.adapter")
    patched, handle = host.apply(model)
    original, adapter._by_name = adapter._by_name, failing(TypeError("broken on purpose"))
    try:
        out = run(patched)
    finally:
        adapter._by_name = original
    # The wrapper further out has described the call already.
    assert handle.report.calls_sparse == 2 * LAYERS or torch.equal(out, plain)
    assert any("broken on purpose" in note for note in handle.report.notes)
    assert len(handle.report.calls) == 4 * LAYERS


@check("a run we do not understand goes on without us")
def _() -> None:
    model = wan()
    plain = run(model)
    adapter = host.pack("nodes.adapter")
    patched, handle = host.apply(model)
    original, adapter.Trajectory = adapter.Trajectory, failing(AttributeError("percent_to_sigma"))
    try:
        assert torch.equal(run(patched), plain)
    finally:
        adapter.Trajectory = original
    assert handle.report.calls == [] and "not understood" in handle.report.notes[0]


@check("a node that cannot be told does not stop the run")
def _() -> None:
    adapter, presets = host.pack("nodes.adapter"), host.pack("nodes.presets")
    choices = presets.Choices(preset="custom", dense_start=0.0, min_tokens=0, blocks=(16, 8), tail="linear1")
    patched, handle = adapter.apply_draft_attention(wan(), choices, failing(OSError("connection lost")))
    run(patched, steps=3)
    assert handle.report.calls_sparse == 3 * LAYERS and handle.report.finished is not None


@check("out of memory makes the call dense")
def _() -> None:
    model = wan()
    plain = run(model)
    patched, handle = host.apply(model)
    with BrokenCore(failing(torch.OutOfMemoryError("broken on purpose"))):
        out = run(patched)
    assert torch.equal(out, plain) and handle.report.calls_dense()["out of memory"] == 2 * LAYERS


@check("a sparse output that is not finite is thrown away")
def _() -> None:
    model = wan()
    plain = run(model)
    patched, handle = host.apply(model)
    session = host.pack("draftattn_core.session")
    original = session.attend

    def nan(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        return replace(result, out=result.out * torch.nan)

    with BrokenCore(nan):
        out = run(patched)
    assert torch.equal(out, plain) and handle.report.calls_dense()["non-finite output"] == 2 * LAYERS
    assert any("not finite" in note for note in handle.report.notes)


@check("a small video is dense, with the reason and a remedy")
def _() -> None:
    model = wan()
    patched, handle = host.apply(model, min_tokens=12000)
    assert torch.equal(run(patched), run(model))
    assert handle.report.calls_dense()["too few tokens"] == 2 * LAYERS
    assert any("min_tokens" in note for note in handle.report.notes)


@check("an unknown model is dense, with the reason and a remedy")
def _() -> None:
    flux = {
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "vec_in_dim": 32,
        "context_in_dim": 64,
        "hidden_size": 128,
        "mlp_ratio": 2.0,
        "num_heads": 1,
        "depth": 1,
        "depth_single_blocks": 1,
        "axes_dim": [16, 56, 56],
        "theta": 10000,
        "qkv_bias": True,
        "guidance_embed": False,
    }
    import comfy.ldm.flux.model

    if any(field.name == "txt_ids_dims" for field in fields(comfy.ldm.flux.model.FluxParams)):
        flux["txt_ids_dims"] = []
    told: list[str] = []
    model = Foreign().overwrite(host.build("FluxSchnell", flux))
    text = [[torch.rand(1, 5, 64), {"pooled_output": torch.rand(1, 32)}]]
    latent = torch.zeros(1, 16, 6, 10)
    choices = host.pack("nodes.presets").Choices()
    patched, handle = host.pack("nodes.adapter").apply_draft_attention(model, choices, told.append)
    assert torch.equal(run(patched, latent, text), run(model, latent, text))
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
    layouts = host.pack("nodes.layouts")
    found = layouts.describe(MiniMaxH3Model.__new__(MiniMaxH3Model), {"x": LATENT})
    assert "BlockSparseAttention" in found.message


@check("strict refuses before sampling starts, and says why")
def _() -> None:
    foreign = Foreign()

    def refusal(patched: Any) -> str:
        try:
            run(patched)
        except ValueError as error:
            return str(error)
        raise AssertionError("strict let it pass")

    small, _ = host.apply(foreign.overwrite(wan()), strict=True, min_tokens=12000)
    assert "lower min_tokens" in refusal(small)
    replaced, _ = host.apply(foreign.overwrite(wan()), strict=True)
    replaced.add_object_patch("diffusion_model.blocks.0.self_attn.forward", lambda x, *args, **kwargs: x)
    assert "blocks.0.self_attn.forward" in refusal(replaced)
    unserved, _ = host.apply(foreign.overwrite(wan()), strict=True)
    strict = host.pack("nodes.strict")
    original, strict.choose_backend = strict.choose_backend, failing(ValueError("no backend can serve this call"))
    try:
        assert "no backend can serve this call" in refusal(unserved)
    finally:
        strict.choose_backend = original
    assert not foreign.calls, "sampling had begun"
    fine, handle = host.apply(wan(), strict=True)
    run(fine)
    assert handle.report.calls_sparse == 2 * LAYERS


@check("text order is what the host's own block does")
def _() -> None:
    order = host.pack("nodes.text_order").text_comes_first
    network = host.build("HunyuanVideo", HUNYUAN).model.diffusion_model
    assert order(network) is True

    block = type(network.double_blocks[0])

    class Reversed(block):
        def forward(self, img: torch.Tensor, txt: torch.Tensor, vec: Any, **kwargs: Any) -> Any:
            q = torch.cat([img, txt], 1)[:, None]
            kwargs["transformer_options"][OVERRIDE](None, q, q, q, 1)
            return img, txt

    class Unknown(block):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return None

    for made, expected in ((Reversed, False), (Unknown, None)):
        network.double_blocks[0].__class__ = made
        assert order(network) is expected


@check("text order where the block would not say: by what the host publishes, else dense")
def _() -> None:
    model = host.build("HunyuanVideo", HUNYUAN)
    case = next(case for case in CASES if case.name == "HunyuanVideo t2v")
    plain = run(model, positive=case.conditioning())
    layouts = host.pack("nodes.layouts")
    original, layouts.text_comes_first = layouts.text_comes_first, lambda network: None
    try:
        patched, handle = host.apply(model, schedule=almost_dense())
        assert difference(run(patched, positive=case.conditioning()), plain) < 1e-4
    finally:
        layouts.text_comes_first = original
    placed = [call for call in handle.report.calls if call.position]
    assert {call.position.layer for call in placed} >= {2, 3}, "single blocks publish the order on every version"
    unknown = handle.report.calls_dense().get("unknown token grid", 0)
    assert handle.report.calls_sparse + unknown == 2 * 4


@check("the node is told how the run goes")
def _() -> None:
    told: list[str] = []
    adapter, presets = host.pack("nodes.adapter"), host.pack("nodes.presets")
    choices = presets.Choices(preset="custom", dense_start=0.0, min_tokens=0, blocks=(16, 8), tail="linear1")
    patched, handle = adapter.apply_draft_attention(wan(), choices, told.append)
    run(patched, steps=3)
    assert told[0] == f"{LAYERS} of {LAYERS} self-attention calls sparse"
    assert told[-1] == handle.report.summary() and f"{3 * LAYERS} of {3 * LAYERS}" in told[-1]


@check("a listener sees every sparse call, and may fail")
def _() -> None:
    patched, handle = host.apply(wan())
    seen = []
    handle.listeners += [lambda result, position: seen.append(position.layer), failing(RuntimeError("no picture"))]
    run(patched)
    assert seen == [0, 1] * 2 and len(handle.listeners) == 1
    assert any("no picture" in note for note in handle.report.notes)


@check("every preset runs")
def _() -> None:
    for preset in host.pack("nodes.presets").PRESET_NAMES:
        patched, handle = host.apply(wan(), preset=preset, tail="auto", blocks=(128, 64))
        out = run(patched, torch.zeros(1, 16, 5, 16, 16), steps=4)
        assert out.isfinite().all() and handle.report.calls_sparse > 0, (preset, handle.report.summary())


@check("dense layers and anchors")
def _() -> None:
    patched, handle = host.apply(wan(), dense_layers=(0,), anchor_first=True, anchor_last=True)
    run(patched)
    assert handle.report.calls_dense()["dense layer"] == 2 and handle.report.calls_sparse == 2
    last, handle = host.apply(wan(), dense_layers=(-1,))
    run(last)
    assert {call.position.layer for call in handle.report.calls if call.position and call.reason} == {LAYERS - 1}
