"""The end-to-end bench without a GPU: steps on tiny models, inputs of the full ones, and the factors made of them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from benchmarks.e2e import steps
from benchmarks.e2e.models import MODELS, built_on, linear_flops, weight_bytes, without_masks
from benchmarks.e2e.runs import (
    FIRST,
    RUNS,
    TARGETS,
    Run,
    densities_of,
    first_densities,
    runs_of,
    verdict,
    wanted_densities,
)
from benchmarks.e2e.steps import step_rows
from benchmarks.kernels.row import Row
from draftattention.draftattn_core import Schedule, Settings
from draftattention.draftattn_core.hosts.diffusers.apply import apply_draft_attention
from draftattention.draftattn_core.run import sparse_calls
from tools.comfyui.path import PACK_ROOT

CPU = torch.device("cpu")

HUNYUAN = "HunyuanVideo 1.5 720p"


def work(model: str, **more: object) -> dict[str, object]:
    return {"model": model, "densities": [0.3], "first": [], "backend": "torch", "repeats": 1, **more}


@pytest.mark.parametrize("name", list(MODELS))
def test_steps_of_a_tiny_model(name: str) -> None:
    with torch.no_grad():
        dense, sparse = step_rows(work(name), CPU)
    assert (dense.what, dense.executed, dense.status) == ("dense", 1.0, "unmeasured")
    assert (sparse.what, sparse.by, sparse.status) == ("sparse", "torch", "unmeasured")
    assert sparse.executed is not None and 0.3 < sparse.executed < 0.8 and sparse.seconds is None


def test_the_first_sparse_step_pays_what_a_run_pays_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two sessions each, the probe runs in the step that is timed; in the other sparse row it warms up."""
    probes: list[str] = []
    timed: list[list[str]] = []
    right, run = sparse_calls.probe_tails, steps._Steps.run

    def probe(*arguments: Any, **options: Any) -> Any:
        probes.append("probe")
        return right(*arguments, **options)

    def noted(self: Any, *arguments: Any) -> None:
        probes.clear()
        run(self, *arguments)
        timed.append(probes.copy())

    monkeypatch.setattr(sparse_calls, "probe_tails", probe)
    monkeypatch.setattr(steps._Steps, "run", noted)
    with torch.no_grad():
        dense, sparse, first = step_rows(work("Wan 14B 720p", first=[0.3], repeats=2), CPU)
    assert (first.what, first.status, first.density, first.by) == ("first sparse", "unmeasured", 0.3, "torch")
    assert first.executed == pytest.approx(sparse.executed)
    # Two dense steps, two later ones, two first ones with both layers' probes.
    assert timed == [[], [], [], [], ["probe"] * 2, ["probe"] * 2]


def test_a_step_that_ran_dense_is_no_sparse_step() -> None:
    """The interpreter is off, so the Triton backend refuses, and the run serves every call dense."""
    with torch.no_grad():
        _, sparse = step_rows(work("Wan 14B 720p", backend="triton"), CPU)
    assert sparse.status == "wrong" and sparse.seconds is None
    assert sparse.note.startswith("ran dense: 4 no backend") and "not on cpu" in sparse.note


@pytest.mark.parametrize("name", list(MODELS))
def test_inputs_are_those_of_720p(name: str) -> None:
    """Tokens of the self-attention: the video after patchify and the text that is read."""
    model = MODELS[name]
    inputs = model.inputs(False, torch.device("meta"), torch.bfloat16)
    t, h, w = inputs["hidden_states"].shape[-3:]
    video = t * h * w // (1 if name == HUNYUAN else 4)
    text = inputs["encoder_attention_mask"].shape[1] if name == HUNYUAN else 0
    assert model.attention[1] == video + text


def test_dense_attention_without_masks_is_the_models_own() -> None:
    model = MODELS[HUNYUAN]
    torch.manual_seed(0)
    with torch.no_grad(), built_on(CPU, torch.float32):
        transformer = model.build(True).eval()
        inputs = {**model.inputs(True, CPU, torch.float32), "timestep": torch.tensor([960.0]), "return_dict": False}
        expected = transformer(**inputs)[0]
        processors = [block.attn.processor for block in transformer.transformer_blocks]
        with without_masks(transformer):
            found = transformer(**inputs)[0]
        assert torch.allclose(found, expected, atol=1e-5)
        assert [block.attn.processor for block in transformer.transformer_blocks] == processors
        settings = Settings(schedule=Schedule(((0.0, 0.3),)), backend="torch")
        with apply_draft_attention(transformer, settings, timesteps=[960.0]):
            sparse = transformer(**inputs)[0]
        assert not torch.allclose(sparse, expected, atol=1e-5)


def step(density: float, seconds: float | None, what: str = "sparse") -> Row:
    status = "unmeasured" if seconds is None else "timed"
    return Row("step", what, status, "Wan 14B 720p", density=density, executed=density, seconds=seconds)


def rows_of_a_run(sparse_seconds: float | None = 2.0, first_seconds: float | None = 5.0) -> list[Row]:
    sparse = [step(density, sparse_seconds) for density in wanted_densities()]
    return [step(1.0, 10.0), *sparse, *(step(density, first_seconds, FIRST) for density in first_densities())]


def test_every_density_of_both_runs_is_timed_the_commonest_first() -> None:
    asked = {density for steps in RUNS for density in densities_of(steps)}
    wanted = wanted_densities()
    assert set(wanted) == asked - {1.0}
    assert densities_of(20).count(wanted[0]) > 10


def test_the_factor_of_a_run_is_dense_time_over_its_steps() -> None:
    long, short = runs_of("Wan 14B 720p", rows_of_a_run())
    dense = densities_of(20).count(1.0)
    assert dense == 2
    assert first_densities() == [0.4]
    assert long.later_factor == pytest.approx(20 * 10.0 / (dense * 10.0 + (20 - dense) * 2.0))
    assert long.factor == pytest.approx(20 * 10.0 / (dense * 10.0 + (19 - dense) * 2.0 + 5.0))
    assert short.later_factor == pytest.approx(5.0)
    assert short.factor == pytest.approx(4 * 10.0 / (3 * 2.0 + 5.0))
    assert long.executed == pytest.approx(sum(densities_of(20)) / 20)


def test_a_run_with_a_step_missing_has_no_factor() -> None:
    rows = [row for row in rows_of_a_run() if row.density != 0.2]
    assert [run.factor for run in runs_of("Wan 14B 720p", rows)] == [None, None]
    assert [run.factor for run in runs_of("Wan 14B 720p", rows_of_a_run(None))] == [None, None]
    without_first = runs_of("Wan 14B 720p", rows_of_a_run(first_seconds=None))
    assert [run.factor for run in without_first] == [None, None]
    assert without_first[1].later_factor == pytest.approx(5.0)


def test_verdicts() -> None:
    wanted = TARGETS["Wan 14B 720p"]
    missed = verdict(Run("Wan 14B 720p", 20, 0.3, wanted - 0.2, 1.9), "NVIDIA H200")
    assert missed is not None and missed.word == "missed"
    assert missed.said == f"{wanted - 0.2:.2f} x (1.90 x without what a run pays once), short by 0.20"
    met = verdict(Run(HUNYUAN, 20, 0.3, 3.1, 3.2), "NVIDIA H100")
    assert met is not None and met.word == "met" and "the target is for an H200" in met.said
    unmeasured = verdict(Run(HUNYUAN, 20, None, None, None), "none")
    assert unmeasured is not None and unmeasured.word == "unmeasured"
    assert verdict(Run(HUNYUAN, 4, 0.3, 3.1, 3.2), "NVIDIA H200") is None


def test_what_would_run_is_told_where_diffusers_is_missing() -> None:
    blocked = "import sys; sys.modules['diffusers'] = None; from benchmarks.e2e.__main__ import main; main(['--plan'])"
    found = subprocess.run([sys.executable, "-c", blocked], cwd=PACK_ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("cannot run: ModuleNotFoundError") == len(MODELS)


@pytest.mark.parametrize("name", list(MODELS))
def test_estimates_count_each_weight_with_what_passes_through_it(name: str) -> None:
    """Seen on a tiny model: video tokens, text tokens, or one vector a step."""
    model, seen = MODELS[name], dict[str, int]()
    transformer, inputs = model.build(True).eval(), model.inputs(True, CPU, torch.float32)

    def see(weights: str) -> Any:
        def hook(module: torch.nn.Module, _: Any, out: torch.Tensor) -> None:
            channels = out.shape[1] if isinstance(module, torch.nn.Conv3d) else out.shape[-1]
            seen[weights] = out.numel() // channels

        return hook

    for weights, module in transformer.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv3d)):
            module.register_forward_hook(see(f"{weights}.weight"))
    timestep = torch.tensor([500]).to(torch.long if model.timestep == torch.long else torch.float32)
    with torch.no_grad():
        transformer(**inputs, timestep=timestep, return_dict=False)
    video = max(seen.values())
    kinds = {weights: model.reads(weights) for weights in seen}
    assert {"video", "text", "once"} == set(kinds.values()) and len(seen) > 20
    for weights, rows in seen.items():
        kind = "once" if rows == 1 else "video" if rows == video else "text"
        assert kinds[weights] == kind, weights


def test_half_of_hunyuan_s_weights_see_text_or_one_vector_only() -> None:
    model = MODELS[HUNYUAN]
    everything = weight_bytes(model, False, torch.bfloat16) * model.attention[1]
    assert 0.3 < linear_flops(model) / everything < 0.4
