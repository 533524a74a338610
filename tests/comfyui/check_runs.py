"""Runs in ComfyUI's Python: what a run leaves as it was, and what it may leave behind."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import host
import torch
from toy_runs import LAYERS, OVERRIDE, BrokenCore, run, wan

CHECKS, check = host.registry()


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
    assert len(handle.run.calls.cache) == 0, "index tables outlived the run"


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


@check("model unloaded and loaded again between runs")
def _() -> None:
    import comfy.model_management

    patched, handle = host.apply(wan())
    first = run(patched)
    comfy.model_management.unload_all_models()
    assert torch.equal(run(patched), first)
    assert handle.report.calls_sparse == 2 * LAYERS


@check("two patched models, one sampled within a step of the other")
def _() -> None:
    (outer, outer_handle), (inner, inner_handle) = host.apply(wan(), sparsity=0.5), host.apply(wan(), sparsity=0.8)
    alone = run(outer, steps=3), run(inner)
    inside: list[torch.Tensor] = []
    out = run(outer, steps=3, callback=lambda *_: inside.append(run(inner)))
    assert torch.equal(out, alone[0]) and all(torch.equal(found, alone[1]) for found in inside)
    assert outer_handle.report.calls_sparse == 3 * LAYERS and inner_handle.report.calls_sparse == 2 * LAYERS


@check("tensors and tables of a run are freed at its end")
def _() -> None:
    kept: list[weakref.ref[Any]] = []
    tables: list[int] = []
    core = host.pack("draftattn_core.run.sparse_calls")
    original = core.attend

    def watched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = original(q, k, v, *args, **kwargs)
        request = result.request
        kept.extend(weakref.ref(made) for made in (q, k, v, result.out, request.keep, request.tables, request.tables.q))
        tables.append(len(handle.run.calls.cache))
        return result

    patched, handle = host.apply(wan(), tail="auto")
    with BrokenCore(watched):
        for frames in (1, 2, 3):
            run(patched, torch.zeros(1, 16, frames, 6, 10))
    gc.collect()
    assert len(kept) >= 7 * 3 * 2 * LAYERS and set(tables) == {1}
    assert not [made for made in kept if made() is not None]


@check("a model that is dropped takes everything of ours along")
def _() -> None:
    patched, handle = host.apply(wan())
    run(patched)
    watched = [weakref.ref(made) for made in (handle, handle.run, handle.report, patched.model)]
    del patched, handle
    gc.collect()
    import comfy.model_management

    comfy.model_management.unload_all_models()
    comfy.model_management.cleanup_models_gc()
    gc.collect()
    assert not [made for made in watched if made() is not None]


@check("every preset runs")
def _() -> None:
    # CalibAtt needs a profile, see check_published.
    for preset in set(host.pack("nodes.inputs.presets").PRESET_NAMES) - {"calibatt"}:
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
