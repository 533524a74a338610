"""Runs in ComfyUI's Python: what happens when something fails: the call is dense, with a reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import host
import torch
from toy_runs import LAYERS, BrokenCore, Logged, failing, run, wan

CHECKS, check = host.registry()


@check("an error of ours makes the call dense, three make us stand aside")
def _() -> None:
    model = wan()
    plain = run(model, steps=4)
    patched, handle = host.apply(model)
    with BrokenCore(failing(RuntimeError("broken on purpose"))), Logged() as logged:
        out = run(patched, steps=4)
    assert torch.equal(out, plain)
    assert sum("Traceback" in line for line in logged.lines) == 1, logged.lines
    assert sum("stands aside for the rest of this run after 3 errors" in line for line in logged.lines) == 1
    dense = handle.report.calls_dense()
    assert dense["error"] == 3 and dense["stood aside after errors"] == 4 * LAYERS - 3
    assert any("broken on purpose" in note for note in handle.report.notes)
    assert not torch.equal(run(patched, steps=4), plain), "the next run starts afresh"


@check("an error in our translation makes the call dense")
def _() -> None:
    model = wan()
    plain = run(model)
    patched, handle = host.apply(model)
    adapter = host.pack("nodes.host.adapter")
    with patch.object(adapter, "classify", failing(KeyError("broken on purpose"))):
        out = run(patched)
    assert torch.equal(out, plain)
    assert handle.report.calls_dense() == {"stood aside after errors": 4 * LAYERS - 3, "error": 3}


@check("a model call we cannot describe is dense and counted")
def _() -> None:
    model = wan()
    plain = run(model)
    adapter = host.pack("nodes.host.adapter")
    patched, handle = host.apply(model)
    with patch.object(adapter, "_by_name", failing(TypeError("broken on purpose"))):
        out = run(patched)
    # The wrapper further out has described the call already.
    assert handle.report.calls_sparse == 2 * LAYERS or torch.equal(out, plain)
    assert any("broken on purpose" in note for note in handle.report.notes)
    assert len(handle.report.calls) == 4 * LAYERS


@check("an evaluation that we cannot describe is computed and counted, and told")
def _() -> None:
    model = wan()
    plain = run(model)
    adapter = host.pack("nodes.host.adapter")
    patched, handle = host.apply(model)
    run(patched)
    every = handle.report.outcomes
    with patch.object(adapter, "evaluation_of", failing(KeyError("broken on purpose"))):
        out = run(patched)
    assert handle.report.outcomes == every != {}, handle.report.outcomes
    assert any("broken on purpose" in note for note in handle.report.notes)
    assert torch.isfinite(out).all() and out.shape == plain.shape


@check("a run we do not understand goes on without us")
def _() -> None:
    model = wan()
    plain = run(model)
    adapter = host.pack("nodes.host.adapter")
    patched, handle = host.apply(model)
    with patch.object(adapter, "Trajectory", failing(AttributeError("percent_to_sigma"))):
        assert torch.equal(run(patched), plain)
    assert handle.report.calls == [] and "not understood" in handle.report.notes[0]


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
    original = host.pack("draftattn_core.run.sparse_calls").attend

    def nan(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        return replace(result, out=result.out * torch.nan)

    with BrokenCore(nan):
        out = run(patched)
    assert torch.equal(out, plain) and handle.report.calls_dense()["non-finite output"] == 2 * LAYERS
    assert any("not finite" in note for note in handle.report.notes)
