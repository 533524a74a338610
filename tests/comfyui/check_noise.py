"""Runs in ComfyUI's Python: the schedule lands by noise level, whatever samplers and other nodes make of the steps."""

from __future__ import annotations

from typing import Any

import host
import torch
from check_models import Spy, almost_dense
from toy_runs import LATENT, LAYERS, difference, half_dense, node, run, wan

CHECKS, check = host.registry()


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
    off_schedule = 0
    for sampler in ("heun", "dpm_2", "dpmpp_2s_ancestral", "uni_pc"):
        model = wan()
        whole, handle = host.apply(model, schedule=almost_dense())
        assert difference(run(whole, steps=4, sampler=sampler), run(model, steps=4, sampler=sampler)) < 1e-4
        placed = [call.position for call in handle.report.calls if call.position]
        assert handle.report.calls_sparse == len(placed) and len(placed) % LAYERS == 0, handle.report.summary()
        progress = sorted({position.progress for position in placed})
        assert len(progress) >= 4 and progress[0] < 1e-3 and progress[-1] <= 1.0, (sampler, progress)
        off_schedule += sum(abs(value * 4 - round(value * 4)) > 0.02 for value in progress)

        half, handle = host.apply(model, schedule=half_dense())
        run(half, steps=4, sampler=sampler)
        decided = {(call.position.progress, call.reason is None) for call in handle.report.calls if call.position}
        assert decided == {(value, value >= 0.49) for value, _ in decided}, (sampler, decided)
        assert {sparse for _, sparse in decided} == {True, False}
    assert off_schedule >= 4, "no evaluation between the steps of the schedule was seen"


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
    # All blocks in the sparse calls: rounding, which differs between one run and two, cannot change the selection.
    schedule = host.pack("draftattn_core.run.schedule").constant(1.0 - 1e-9, warmup=0.35)
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
