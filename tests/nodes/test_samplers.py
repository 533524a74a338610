"""Where a correction is safe: the host's plain Euler steps, and between model and sampler nothing but sums."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

SAMPLING, SAMPLERS = "comfy.k_diffusion.sampling", "comfy.samplers"


def named(module: str, qualname: str) -> Any:
    """A function as if it had been defined there."""

    def function() -> None:
        pass

    function.__module__, function.__qualname__ = module, qualname
    return function


def guider(
    module: str = SAMPLERS, cls: str = "CFGGuider", wrappers: dict[str, Any] | None = None, **options: Any
) -> Any:
    made = type(cls, (), {"__module__": module})()
    made.model_options, made.model_patcher = options, SimpleNamespace(wrappers=wrappers or {})
    return made


@pytest.fixture
def euler(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The host's sampler, as its KSampler makes it."""
    sampling = ModuleType(SAMPLING)
    sampling.sample_euler = named(SAMPLING, "sample_euler")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, SAMPLING, sampling)
    return SimpleNamespace(sampler_function=sampling.sample_euler, extra_options={})


@pytest.fixture
def takes_euler_steps(part) -> Any:
    return part("nodes.host.samplers").takes_euler_steps


def test_the_hosts_euler_takes_euler_steps_and_nothing_that_looks_like_it(takes_euler_steps, euler) -> None:
    assert takes_euler_steps(euler, guider())
    for other in (named(SAMPLING, "sample_heun"), named(SAMPLING, "sample_euler"), None):
        assert not takes_euler_steps(SimpleNamespace(sampler_function=other, extra_options={}), guider())
    for churn, expected in ((0.0, True), (0.5, False)):
        noisy = SimpleNamespace(sampler_function=euler.sampler_function, extra_options={"s_churn": churn})
        assert takes_euler_steps(noisy, guider()) is expected
    assert not takes_euler_steps(SimpleNamespace(), guider())


def test_guiders_of_the_host_that_are_sums_pass_a_correction_on(takes_euler_steps, euler) -> None:
    for module, cls, expected in (
        ("comfy_extras.nodes_custom_sampler", "Guider_DualCFG", True),
        ("/opt/ComfyUI-0.33/comfy_extras/nodes_custom_sampler", "Guider_Basic", True),
        (r"C:\ComfyUI\comfy_extras\nodes_lt", "Guider_LTXAVDualCFG", True),
        ("comfy_extras.nodes_perpneg", "Guider_PerpNeg", False),
        ("/opt/ComfyUI/custom_nodes/other/samplers", "CFGGuider", False),
    ):
        assert takes_euler_steps(euler, guider(module, cls)) is expected, (module, cls)


@pytest.mark.parametrize(
    "place", ["sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function", "model_function_wrapper"]
)
def test_guidance_of_other_nodes_passes_a_correction_on_only_where_it_was_measured_to(
    takes_euler_steps, euler, place: str
) -> None:
    for module, qualname, expected in (
        ("/opt/ComfyUI/comfy_extras/nodes_model_advanced", "RescaleCFG.patch.<locals>.rescale_cfg", True),
        ("comfy_extras.nodes_slg", "SkipLayerGuidanceDiT.execute.<locals>.post_cfg_function", True),
        ("comfy_extras.nodes_slg", "SkipLayerGuidanceDiTSimple.execute.<locals>.calc_cond_batch_function", False),
        ("comfy_extras.nodes_cfg", "CFGZeroStar.execute.<locals>.cfg_zero_star", False),
        ("comfy_extras.nodes_apg", "APG.execute.<locals>.pre_cfg_function", False),
        ("/opt/ComfyUI/custom_nodes/other/nodes", "RescaleCFG.patch.<locals>.rescale_cfg", False),
    ):
        function = named(module, qualname)
        given = [function] if place.endswith(("pre_cfg_function", "post_cfg_function")) else function
        assert takes_euler_steps(euler, guider(**{place: given})) is expected, (place, qualname)


def test_wrappers_around_sampling_may_do_anything_unless_they_are_the_hosts_own(takes_euler_steps, euler) -> None:
    for kind, module, expected in (
        ("sampler_sample", "comfy.context_windows", True),
        ("sampler_sample", "custom_nodes.other", False),
        ("predict_noise", "custom_nodes.other", False),
        ("calc_cond_batch", "custom_nodes.other", False),
        ("diffusion_model", "custom_nodes.other", True),
    ):
        wrappers = {kind: {"key": [named(module, "wrapper")]}}
        assert takes_euler_steps(euler, guider(wrappers=wrappers)) is expected, kind
        options = {"transformer_options": {"wrappers": wrappers}}
        assert takes_euler_steps(euler, guider(**options)) is expected, kind


def test_a_mask_must_keep_or_denoise_and_hardly_ever_mix(takes_euler_steps, euler) -> None:
    hard = (torch.arange(100).reshape(1, 1, 10, 10) % 2).float()
    seam, soft = hard.clone(), hard.clone()
    seam.view(-1)[:9], soft.view(-1)[:12] = 0.5, 0.5
    assert takes_euler_steps(euler, guider(), hard) and takes_euler_steps(euler, guider(), seam)
    assert not takes_euler_steps(euler, guider(), soft) and not takes_euler_steps(euler, guider(), object())
    changing = guider(denoise_mask_function=named("comfy_extras.nodes_differential_diffusion", "forward"))
    assert not takes_euler_steps(euler, changing, hard)
