"""Runs in ComfyUI's Python: what Skip Steps shows of a run through its own report, alone and with Apply."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import host
import torch
from skipped_runs import STEPS, settings, skipping
from toy_runs import LAYERS, Logged, calm, half_dense, run, wan

CHECKS, check = host.registry()


def node(model: Any, **given: Any) -> tuple[Any, Any]:
    """Outputs of the node itself: model and report."""
    cls = host.pack("nodes.skip_steps").DraftAttentionSkipSteps
    cls.hidden = SimpleNamespace(unique_id=None)
    found: tuple[Any, Any] = cls.execute(
        model, **{"rule": "forecast", "threshold": 0.1, "first_steps": 3, **given}
    ).args
    return found


@check("Skip Steps alone has a report: text, picture and figures of its evaluations; the log tells them in one line")
def _() -> None:
    model, handle = node(calm(wan()))
    with Logged() as log:
        run(model, steps=STEPS)
    report = handle.report
    computed, forecast = report.outcomes["computed"], report.outcomes["forecast"]
    line = f"DraftAttention: {STEPS} steps: {computed} computed, {forecast} forecast; forecast error "
    assert log.lines[-1] == report.summary() and log.lines[-1].startswith(line), log.lines
    assert "estimated from this run's dense evaluations" in log.lines[-1]
    text = host.pack("nodes.display.report_text").report_text(report)
    assert f"Evaluations: {computed} computed, {forecast} forecast." in text
    assert f"Work of the run: {computed / STEPS:.0%}" in text and "by evaluation: 2: " in text
    assert "self-attention" not in text
    values = report.to_dict()
    assert [row["outcome"] for row in values["decisions"]].count("forecast") == forecast
    sheet = host.pack("draftattn_core.views.charts").report_sheet(report)
    assert sheet.width > 400 and sheet.height > 200


@check("the report of Skip Steps follows Apply, placed before or after it, and Apply's own says the same")
def _() -> None:
    before, report = node(calm(wan()))
    both, handle = host.apply(before, schedule=half_dense())
    run(both, steps=STEPS)
    assert report.report is handle.report and report.run is handle.run
    assert handle.report.skipped > 0 and handle.report.calls_sparse >= LAYERS
    again, handle_again = host.apply(both, schedule=half_dense())
    run(again, steps=STEPS)
    assert report.report is handle_again.report is not handle.report, "Apply again, and it still follows"

    sparse, handle = host.apply(calm(wan()), schedule=half_dense())
    after, report = node(sparse)
    run(after, steps=STEPS)
    assert report is handle and handle.report.skipped > 0 and handle.report.calls_sparse > 0
    # The model before the node skips nothing.
    run(sparse, steps=STEPS)
    assert handle.report.skipped == 0


@check("Skip Steps: its model output stays the first, its report is appended")
def _() -> None:
    outputs = host.pack("nodes.skip_steps").DraftAttentionSkipSteps.define_schema().outputs
    assert [item.display_name for item in outputs] == ["model", "report"]


@check("caches of other packs are seen by their names, and Skip Steps stands aside")
def _() -> None:
    def unet_wrapper(apply: Any, given: Any) -> torch.Tensor:
        return apply(given["input"], given["timestep"], **given["c"])

    for pack in ("TeaCache", "MagCache", "TaylorSeer", "CacheDiT"):
        module = f"custom_nodes.ComfyUI-{pack}.nodes"
        unet_wrapper.__module__ = module
        model = calm(wan())
        model.set_model_unet_function_wrapper(unet_wrapper)
        patched, handle = skipping(model)
        run(patched, steps=STEPS)
        assert handle.report.skipped == 0 and any("another cache" in note for note in handle.report.notes), module
    # Those that say so in an option, and have their wrappers elsewhere.
    for option in ("cache_dit_turbo", "wan_cache", "ltx2_cache", "tea-cache", "first-block-cache"):
        model = calm(wan())
        model.model_options["transformer_options"][option] = object()
        patched, handle = skipping(model)
        run(patched, steps=STEPS)
        assert handle.report.skipped == 0, option

    # One that puts a forward of its own into the network, one whose wrapper has a name without the word.
    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        return original(*args, **kwargs)

    def outer(executor: Any, *args: Any, **kwargs: Any) -> Any:
        return executor(*args, **kwargs)

    forward.__module__ = outer.__module__ = "custom_nodes.ComfyUI-CacheDiT.nodes_wan"
    model = calm(wan())
    network = model.model.diffusion_model
    original, network.forward = network.forward, forward
    patched, handle = skipping(model)
    run(patched, steps=STEPS)
    assert handle.report.skipped == 0
    del network.forward
    # In the patcher alone, as long as the model is not loaded.
    model = calm(wan())
    original = model.model.diffusion_model.forward
    model.add_object_patch("diffusion_model.forward", forward)
    patched, handle = skipping(model)
    run(patched, steps=STEPS)
    assert handle.report.skipped == 0
    model = calm(wan())
    model.add_wrapper_with_key("outer_sample", "some_key", outer)
    patched, handle = skipping(model)
    run(patched, steps=STEPS)
    assert handle.report.skipped == 0
    unet_wrapper.__module__ = "custom_nodes.something_else"
    model = calm(wan())
    model.set_model_unet_function_wrapper(unet_wrapper)
    patched, handle = skipping(model)
    run(patched, steps=STEPS)
    assert handle.report.skipped > 0 and settings().rule == "forecast"
