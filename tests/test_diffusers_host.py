"""The diffusers host, on tiny random models of every supported class."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("diffusers")

from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from draftattention.draftattn_core import DenseReason, Policy, Schedule, Settings, TokenGrid
from draftattention.draftattn_core.hosts.diffusers.apply import apply_draft_attention
from tests.diffusers_models import GRID, HEADS, MODELS, TOKENS, build

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SMALL = {"q_block": 16, "k_block": 8}
SPARSE = Settings(schedule=Schedule(((0.0, 0.3),)), **SMALL)
DENSE = Settings(schedule=Schedule(((0.0, 1.0),)), **SMALL)
# A density of 1 is a dense call; one so close to it that no block pair is left out takes the sparse path.
FULL = Settings(schedule=Schedule(((0.0, 0.9999),)), **SMALL)


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    return model(**inputs, return_dict=False)[0]


def test_at_full_density_the_sparse_path_equals_the_model(name):
    model, inputs = build(name), MODELS[name].inputs(2)
    expected = run(model, inputs)
    with apply_draft_attention(model, FULL, steps=1) as handle:
        out = run(model, inputs)
    assert handle.report.calls_sparse == MODELS[name].layers
    assert handle.report.executed_density() == 1.0
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_dense_calls_are_the_models_own_bit_for_bit(name):
    model, inputs = build(name), MODELS[name].inputs(2)
    seen: list[Any] = []
    for module in model.modules():
        if hasattr(module, "get_processor"):
            module.register_forward_hook(lambda _module, _args, out: seen.append(out))
    expected, stock = run(model, inputs), list(seen)
    seen.clear()
    with apply_draft_attention(model, DENSE, steps=1) as handle:
        assert torch.equal(run(model, inputs), expected)
    torch.testing.assert_close(seen, stock, rtol=0, atol=0)
    assert handle.report.calls_sparse == 0
    assert handle.report.calls_dense() == {DenseReason.SCHEDULE.value: MODELS[name].layers}


def test_removal_leaves_the_model_as_it_was(name):
    model, inputs = build(name), MODELS[name].inputs(2)
    expected, processors = run(model, inputs), model.attn_processors
    handle = apply_draft_attention(model, SPARSE, steps=1)
    assert not torch.equal(run(model, inputs), expected)
    handle.remove()
    handle.remove()
    assert torch.equal(run(model, inputs), expected)
    assert all(model.attn_processors[key] is processor for key, processor in processors.items())
    assert "forward" not in vars(model)


def test_every_call_is_counted_once(name):
    model, inputs = build(name), MODELS[name].inputs(2)
    schedule = Schedule(((0.0, 1.0), (0.5, 1.0), (0.5, 0.4)), dense_layers=(-1,))
    handle = apply_draft_attention(model, Settings(schedule=schedule, **SMALL), timesteps=[900.0, 700.0])
    layers = MODELS[name].layers
    for timestep in (900.0, 700.0):
        for _ in range(2):  # condition and no condition
            run(model, {**inputs, "timestep": torch.full((2,), timestep)})
    report = handle.finish_run()
    assert report.calls_sparse == 2 * (layers - 1)
    assert report.calls_dense() == {DenseReason.SCHEDULE.value: 2 * (layers - 1), DenseReason.DENSE_LAYER.value: 4}
    first, second = report.density_map()
    assert first == [1.0] * layers
    assert second[-1] == 1.0 and all(0 < density < 1 for density in second[:-1])
    assert report.finished is not None


def spy_on(handle: Any) -> list[dict[str, Any]]:
    """Record what the core is given in each call; the calls themselves run dense."""
    seen: list[dict[str, Any]] = []

    def attention(q, k, v, *, dense, from_core, **rest):
        seen.append({"q": q, "k": k, "v": v, "out": dense(), "from_core": from_core, **rest})
        return seen[-1]["out"]

    handle.run.calls.attention = attention
    return seen


def test_the_core_sees_the_tokens_in_raster_order(name):
    """Changing the latent under token (t, h, w) changes q, k and v at t * H * W + h * W + w, and nowhere else."""
    model, patch = build(name), 1 if name == "hunyuan15" else 2
    single = MODELS[name].inputs(1)
    inputs = {key: value.repeat(TOKENS + 1, *[1] * (value.dim() - 1)) for key, value in single.items()}
    t, h, w = torch.unravel_index(torch.arange(TOKENS), GRID)
    video = inputs["hidden_states"]
    for sample in range(TOKENS):
        y, x = patch * h[sample], patch * w[sample]
        video[sample, :, t[sample], y : y + patch, x : x + patch] += 1.0
    handle = apply_draft_attention(model, SPARSE, steps=1)
    seen = spy_on(handle)
    run(model, inputs)
    # In VACE's first control block the latent is added to the control latent: the same tokens.
    first = min(seen, key=lambda call: call["position"].layer)
    for part in ("q", "k", "v"):
        moved = (first[part][:-1] - first[part][-1:]).abs().amax((1, 3)) > 1e-5
        assert torch.equal(moved[:, :TOKENS], torch.eye(TOKENS, dtype=torch.bool))
    assert first["grid"].as_tuple() == GRID


def test_grid_extra_tokens_and_key_bias_describe_the_models_own_attention(name):
    """Attention computed from what the core is given is the attention of the model, text mask included."""
    model, tiny = build(name), MODELS[name]
    handle = apply_draft_attention(model, SPARSE, steps=1)
    seen = spy_on(handle)
    run(model, tiny.inputs(2))
    assert [call["position"].layer for call in sorted(seen, key=lambda call: call["position"].layer)] == list(
        range(tiny.layers)
    )
    for call in seen:
        assert call["position"].layers == tiny.layers
        assert call.get("extra_before", 0) == 0 and call["extra_after"] == tiny.text
        bias = torch.zeros(2, 1, 1, TOKENS + tiny.text)
        if tiny.text:
            bias[:, 0, 0, TOKENS:] = call["key_bias"]
        else:
            assert call["key_bias"] is None
        ours = call["from_core"](scaled_dot_product_attention(call["q"], call["k"], call["v"], attn_mask=bias))
        assert ours.shape == call["out"].shape
        torch.testing.assert_close(ours[:, :TOKENS], call["out"][:, :TOKENS], rtol=1e-5, atol=1e-5)
        assert torch.isfinite(ours).all()


@pytest.mark.parametrize("name", ["hunyuan", "hunyuan15"])
def test_text_that_is_masked_changes_nothing(name):
    model, inputs = build(name), MODELS[name].inputs(2)
    changed = dict(inputs)
    for text, mask in (("", ""), ("_2", "_2")):
        if f"encoder_hidden_states{text}" in inputs:
            hidden = ~inputs[f"encoder_attention_mask{mask}"].bool()
            changed[f"encoder_hidden_states{text}"] = inputs[f"encoder_hidden_states{text}"] + 50.0 * hidden[..., None]
    with apply_draft_attention(model, SPARSE, steps=1) as handle:
        assert torch.equal(run(model, inputs), run(model, changed))
        read = {**inputs, "encoder_attention_mask": torch.ones_like(inputs["encoder_attention_mask"])}
        assert not torch.allclose(run(model, inputs), run(model, read))
    assert handle.report.calls_dense() == {}


def test_a_sparse_call_never_builds_the_mask_over_all_token_pairs():
    """HunyuanVideo 1.5's own processor does, for each sample: by arithmetic 2 x 12.5 GB at 31x45x80 tokens."""
    model, inputs = build("hunyuan15"), MODELS["hunyuan15"].inputs(2)

    class Masks(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in tree_leaves(out):
                if isinstance(x, torch.Tensor) and x.dtype == torch.bool and not x.is_meta:
                    self.largest = max(self.largest, x.numel())
            return out

    def largest(settings: Settings) -> int:
        with apply_draft_attention(model, settings, steps=1), Masks() as masks:
            run(model, inputs)
        return masks.largest

    assert largest(DENSE) >= 2 * TOKENS**2
    # The error probe's 64 rows are most of so small a call.
    assert largest(replace(SPARSE, auto_gain=False)) < TOKENS**2


def test_a_sample_is_served_as_if_it_were_alone(name):
    """Batch 2 with texts of different length gives each sample what batch 1 gives it."""
    model, inputs = build(name), MODELS[name].inputs(2)
    with apply_draft_attention(model, FULL, steps=1):
        both = run(model, inputs)
        for sample in range(2):
            alone = run(model, {key: value[sample : sample + 1] for key, value in inputs.items()})
            torch.testing.assert_close(both[sample : sample + 1], alone, rtol=1e-4, atol=1e-4 * both.abs().max().item())


def test_two_models_do_not_share_state():
    first, second, inputs = build("wan"), build("wan"), MODELS["wan"].inputs(2)
    expected = run(second, inputs)
    with apply_draft_attention(first, SPARSE, steps=1) as one, apply_draft_attention(second, DENSE, steps=1) as two:
        run(first, inputs)
        assert torch.equal(run(second, inputs), expected)
        assert (one.report.calls_sparse, two.report.calls_sparse) == (3, 0)
        assert len(one.report.calls) == len(two.report.calls) == 3
        one.remove()
        assert torch.equal(run(first, inputs), run(second, inputs))
        assert len(one.report.calls) == 3


def test_the_context_manager_removes_after_an_error():
    model, inputs = build("wan"), MODELS["wan"].inputs(2)
    expected = run(model, inputs)
    with pytest.raises(KeyError), apply_draft_attention(model, SPARSE, steps=1) as handle:
        raise KeyError("user code")
    assert not handle.active
    assert torch.equal(run(model, inputs), expected)


def test_an_error_inside_the_model_leaves_no_evaluation_behind():
    model, inputs = build("wan"), MODELS["wan"].inputs(2)
    handle = apply_draft_attention(model, SPARSE, steps=1)
    with pytest.raises(RuntimeError):
        run(model, {**inputs, "encoder_hidden_states": torch.randn(2, 4, 3)})
    block = model.blocks[0].attn1
    states = torch.randn(1, TOKENS, HEADS * 24)
    assert torch.equal(block(states), block.processor.inner(block, states))
    assert handle.report.calls_dense() == {DenseReason.UNKNOWN_GRID.value: 1}


def test_applying_twice_is_refused_and_allowed_again_after_removal():
    model = build("wan")
    handle = apply_draft_attention(model, SPARSE)
    with pytest.raises(ValueError, match="already"):
        apply_draft_attention(model, SPARSE)
    handle.remove()
    apply_draft_attention(model, SPARSE).remove()


def test_what_cannot_be_served_is_refused_with_advice():
    model = build("wan")
    with pytest.raises(TypeError, match="cannot be applied to Linear; it knows WanTransformer3DModel"):
        apply_draft_attention(torch.nn.Linear(2, 2))

    class WanAnimate2Transformer3DModel(torch.nn.Module):
        """A class of diffusers that is not served."""

    with pytest.raises(TypeError, match="WanAnimate2Transformer3DModel; it knows .*HunyuanVideo15Transformer3DModel$"):
        apply_draft_attention(WanAnimate2Transformer3DModel())

    class Pipeline:
        transformer = model

    with pytest.raises(TypeError, match=r"pass its transformer \(pipe.transformer\)"):
        apply_draft_attention(Pipeline())  # type: ignore[arg-type]

    class Foreign:
        def __call__(self, attn: Any, hidden_states: torch.Tensor, *rest: Any) -> torch.Tensor:
            return hidden_states

    model.blocks[1].attn1.set_processor(Foreign())
    with pytest.raises(TypeError, match="processor Foreign does not call"):
        apply_draft_attention(model)
    assert type(model.blocks[0].attn1.processor) is WanAttnProcessor


def test_a_processor_put_around_ours_stays_and_ours_stands_aside():
    model, inputs = build("wan"), MODELS["wan"].inputs(2)
    expected = run(model, inputs)
    handle = apply_draft_attention(model, SPARSE, steps=1)
    ours = model.blocks[0].attn1.processor

    class Around:
        def __call__(self, *args: Any) -> torch.Tensor:
            return ours(*args)

    around = Around()
    model.blocks[0].attn1.set_processor(around)
    handle.remove()
    assert model.blocks[0].attn1.processor is around
    assert torch.equal(run(model, inputs), expected)


def test_calls_that_record_gradients_run_dense_and_have_them():
    model, inputs = build("wan").requires_grad_(True), MODELS["wan"].inputs(2)
    run(model, inputs).sum().backward()
    expected = model.blocks[0].attn1.to_q.weight.grad.clone()
    model.zero_grad()
    with apply_draft_attention(model, SPARSE, steps=1) as handle:
        run(model, inputs).sum().backward()
        assert torch.equal(model.blocks[0].attn1.to_q.weight.grad, expected)
        assert handle.report.calls_dense() == {DenseReason.BACKEND.value: 3}
        handle.finish_run()
        with torch.no_grad():
            out = run(model, inputs)
    assert handle.report.calls_sparse == 3 and not out.requires_grad


def test_dense_calls_use_the_attention_backend_the_user_chose():
    model, inputs = build("wan"), MODELS["wan"].inputs(2)
    with apply_draft_attention(model, DENSE, steps=1):
        model.set_attention_backend("_native_math")
        inside = run(model, inputs)
    assert model.blocks[0].attn1.processor._attention_backend == "_native_math"
    assert torch.equal(run(model, inputs), inside)


def test_fused_projections_are_the_models_own():
    model, inputs = build("wan"), MODELS["wan"].inputs(2)
    expected = run(model, inputs)
    model.fuse_qkv_projections()
    assert hasattr(model.blocks[0].attn1, "to_qkv")
    with torch.no_grad(), apply_draft_attention(model, FULL, steps=1) as handle:
        torch.testing.assert_close(run(model, inputs), expected, rtol=1e-4, atol=1e-4)
    assert handle.report.calls_sparse == 3


def test_auto_tail_and_the_papers_method_run():
    model, inputs = build("hunyuan"), MODELS["hunyuan"].inputs(2)
    for settings in (
        Settings(schedule=SPARSE.schedule, auto_tail=True, **SMALL),
        Settings(policy=Policy.paper(), schedule=SPARSE.schedule, q_block=16, k_block=16, tile=(1, 4, 4)),
    ):
        with apply_draft_attention(model, settings, steps=1) as handle:
            assert torch.isfinite(run(model, inputs)).all()
        assert handle.report.calls_sparse == 4 and handle.report.calls_dense() == {}
        assert len(handle.report.tails) == (4 if settings.policy.has_tail else 0)


def test_budgets_and_a_profile_of_the_model_work_through_the_settings(name):
    model, inputs = build(name), MODELS[name].inputs(2)
    layers, settings = MODELS[name].layers, replace(SPARSE, budgets="error", record=True)

    def two_steps(chosen: Settings) -> Any:
        with apply_draft_attention(model, chosen, timesteps=[1000.0, 900.0]) as handle:
            for timestep in (1000.0, 900.0):
                assert torch.isfinite(run(model, inputs | {"timestep": torch.full((2,), timestep)})).all()
        return handle

    handle = two_steps(settings)
    assert [row.source for row in handle.report.budgets] == ["this run"], handle.report.notes
    assert set(handle.report.budgets[0].after) == set(range(layers))
    profile = handle.run.profile("a fox")
    assert profile is not None and profile.fingerprint.layers == layers
    again = two_steps(replace(SPARSE, profile=profile))
    assert again.report.budgets[0].source == "profile", again.report.notes
    assert not any("weights" in note for note in again.report.notes)
    assert again.report.calls_sparse + again.report.calls_dense().get("budget", 0) == 2 * layers


def test_without_a_run_length_progress_is_the_noise_level_and_the_report_says_so():
    model, inputs = build("wan"), MODELS["wan"].inputs(2)
    handle = apply_draft_attention(model, SPARSE)
    run(model, inputs)
    assert [call.position.progress for call in handle.report.calls] == pytest.approx([0.3] * 3)
    assert any("pass scheduler" in note for note in handle.report.notes)


@pytest.mark.parametrize(
    "scheduler",
    [
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
        FlowMatchEulerDiscreteScheduler(shift=5.0),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_the_scheduler_tells_runs_and_steps(scheduler):
    """The loop of the Wan pipeline with guidance, twice: two runs, each with every step, layer and condition."""
    model, inputs = build("wan"), MODELS["wan"].inputs(1)
    settings = Settings(schedule=Schedule(((0.0, 1.0), (0.5, 1.0), (0.5, 0.4))), **SMALL)
    reports = []
    with apply_draft_attention(model, settings, scheduler=scheduler) as handle:
        for steps in (4, 3):
            latents = inputs["hidden_states"]
            scheduler.set_timesteps(steps)
            for t in scheduler.timesteps:
                here = {**inputs, "hidden_states": latents, "timestep": t.expand(1)}
                velocity, uncond = run(model, here), run(model, here)
                latents = scheduler.step(uncond + 2.0 * (velocity - uncond), t, latents, return_dict=False)[0]
            reports.append(handle.report)
    first, second = reports
    assert first is not second
    for report, steps in ((first, 4), (second, 3)):
        places = sorted((call.position.step, call.position.layer) for call in report.calls)
        assert places == [(step, layer) for step in range(steps) for layer in range(3) for _ in range(2)]
        assert sorted({call.position.progress for call in report.calls}) == [step / steps for step in range(steps)]
        assert report.calls_dense() == {DenseReason.SCHEDULE.value: 12}
        assert report.calls_sparse == 6 * steps - 12


def test_arguments_that_cannot_be_read_run_dense():
    model, inputs = build("wan"), MODELS["wan"].inputs(1)
    expected = run(model, inputs)

    class Unreadable:
        timesteps = property(lambda self: 1 / 0)

    with apply_draft_attention(model, SPARSE, steps=1) as handle:
        handle._clock._scheduler = Unreadable()
        assert torch.equal(run(model, inputs), expected)
    assert handle.report.calls_dense() == {DenseReason.UNKNOWN_GRID.value: 3}
    assert any("ZeroDivisionError" in note for note in handle.report.notes)


@pytest.mark.parametrize("grid", [TokenGrid(3, 5, 6), TokenGrid(3, 5, 8)])
def test_tokens_that_the_grid_does_not_account_for_run_dense(grid):
    model, inputs = build("wan"), MODELS["wan"].inputs(1)
    expected = run(model, inputs)
    with apply_draft_attention(model, SPARSE, steps=1) as handle:
        read = handle._read
        handle._read = lambda *given: replace(read(*given), grid=grid)
        assert torch.equal(run(model, inputs), expected)
    assert handle.report.calls_dense() == {DenseReason.TOKENS.value: 3}


def test_finish_run_parts_two_runs_that_look_like_one():
    model, inputs = build("wan"), MODELS["wan"].inputs(1)
    with apply_draft_attention(model, SPARSE, steps=1) as handle:
        run(model, inputs)
        report = handle.finish_run()
        assert report is handle.report
        run(model, inputs)
    assert handle.report is not report
    assert len(report.calls) == len(handle.report.calls) == 3


def test_the_host_loads_without_diffusers(monkeypatch):
    for module in list(sys.modules):
        if module.partition(".")[0] == "draftattn_core":
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    importlib.import_module("draftattention.draftattn_core.hosts.diffusers.apply")
