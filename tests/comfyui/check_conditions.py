"""Runs in ComfyUI's Python: conditions stacked, split, hooked and in threads; text that could be taken for video."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import host
import torch
from check_models import Spy, almost_dense
from model_cases import CASES, HUNYUAN, HUNYUAN15
from toy_runs import LAYERS, OVERRIDE, TEXT, difference, run, wan

CHECKS, check = host.registry()


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


@check("a LoRA on the model and a LoRA hook on one condition")
def _() -> None:
    import comfy.hooks
    import comfy.sd

    def lora(seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        name = "diffusion_model.blocks.0.self_attn.q"
        down, up = (torch.randn(shape, generator=generator) for shape in ((4, 128), (128, 4)))
        return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}

    model, _ = comfy.sd.load_lora_for_models(wan(), None, lora(1), 1.0, 0.0)
    hook = comfy.hooks.create_hook_lora(lora(2), 1.0, 0.0)
    negative = [[torch.zeros(1, 5, 64), {}]]
    bare = run(wan(), negative=negative, cfg=3.0)
    without = run(model, negative=negative, cfg=3.0)
    positive = comfy.hooks.set_hooks_for_conditioning(TEXT, hook)
    more = {"positive": positive, "negative": negative, "cfg": 3.0}
    plain = run(model, **more)
    assert difference(without, bare) > 1e-3 and difference(plain, without) > 1e-3, "the LoRAs do nothing"
    patched, handle = host.apply(model, schedule=almost_dense())
    assert difference(run(patched, **more), plain) < 1e-4
    assert set(handle.report.calls_dense()) == {"not self-attention"}
    # The hook keeps the two conditions apart.
    branches = Counter(call.position.branch for call in handle.report.calls if call.position)
    assert branches == {"cond": 2 * LAYERS, "uncond": 2 * LAYERS}
    assert difference(run(patched, negative=negative, cfg=3.0), without) < 1e-4, "the hook outlived its run"


@contextmanager
def on_two_devices(patched: Any) -> Iterator[None]:
    """The host's multi-GPU sampling of a model. Two devices in name only: their tensors all lie on the CPU."""
    import comfy.sampler_helpers as helpers

    second = patched.clone(model_override=(wan().model, ({}, {}, {}, set())))
    second.load_device = torch.device("cpu", 1)

    def prepare(patcher: Any, loaded: Any, options: dict[str, Any]) -> list[Any]:
        options["multigpu_clones"] = {patcher.load_device: patcher, second.load_device: second}
        return [second]

    original, helpers.prepare_model_patcher_multigpu_clones = helpers.prepare_model_patcher_multigpu_clones, prepare
    try:
        yield
    finally:
        helpers.prepare_model_patcher_multigpu_clones = original


@check("the host's own multi-GPU sampling, condition and uncondition on a device each")
def _() -> None:
    import comfy.sampler_helpers as helpers

    if not hasattr(helpers, "prepare_model_patcher_multigpu_clones"):
        raise host.Absent("this ComfyUI has no multi-GPU sampling")
    patched, handle = host.apply(wan(), schedule=almost_dense())
    threads: set[int] = set()
    negative = [[torch.zeros(1, 5, 64), {}]]
    plain = run(wan(), negative=negative, cfg=3.0, steps=4)
    with Spy() as spy, on_two_devices(patched):
        done = host.pack("draftattn_core.run.events").EvaluationDone
        handle.events.subscribe(done, lambda _: threads.add(threading.get_ident()))
        out = run(patched, negative=negative, cfg=3.0, steps=4)
    assert len(threads) == 2, "the host used one thread"
    assert difference(out, plain) < 1e-4
    branches = Counter(call["position"].branch for call in spy.calls)
    assert branches == {"cond": 4 * LAYERS, "uncond": 4 * LAYERS}
    assert set(handle.report.calls_dense()) == {"not self-attention"} and len(handle.report.density_map()) == 4


@check("the host's own multi-GPU sampling skips the steps that one device skips, with a state on each")
def _() -> None:
    import comfy.sampler_helpers as helpers

    if not hasattr(helpers, "prepare_model_patcher_multigpu_clones"):
        raise host.Absent("this ComfyUI has no multi-GPU sampling")
    settings = host.pack("draftattn_core.run.step_cache").StepCacheSettings
    negative = [[torch.zeros(1, 5, 64), {}]]

    def sampled(skip: Any, devices: int, late: int | None = None) -> tuple[torch.Tensor, list[Any]]:
        sparse, handle = host.apply(wan(), schedule=almost_dense())
        patched = host.pack("nodes.host.adapter").apply_skip_steps(sparse, skip)[0]

        def wait(apply_model: Any, given: dict[str, Any]) -> torch.Tensor:
            if late in given["cond_or_uncond"]:
                time.sleep(0.02)
            out: torch.Tensor = apply_model(given["input"], given["timestep"], **given["c"])
            return out

        patched.set_model_unet_function_wrapper(wait)
        with on_two_devices(patched) if devices == 2 else nullcontext():
            out = run(patched, negative=negative, cfg=3.0, steps=12)
        assert not any("error" in note for note in handle.report.notes), handle.report.notes
        return out, [
            (d.index, str(d.outcome), str(d.reason), d.branches_computed, d.branches_skipped, d.corrected)
            for d in handle.report.decisions
        ]

    for skip in (settings("forecast", 100.0, 3), settings("spread")):
        alone, decided = sampled(skip, 1)
        assert len(decided) == 12 and any(outcome != "computed" for _, outcome, *_ in decided), decided
        # Whichever device asks first: the condition's decides for both.
        for late in (0, 1):
            split, decided_split = sampled(skip, 2, late)
            assert decided_split == decided, (decided, decided_split)
            assert difference(split, alone) < 1e-4


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


@check("text order is what the host's own block does")
def _() -> None:
    order = host.pack("nodes.host.text_order").text_comes_first
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
    layouts = host.pack("nodes.host.layouts")
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
