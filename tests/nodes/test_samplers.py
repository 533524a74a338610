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


PATH = ("__call__", "outer_predict_noise", "predict_noise", "inner_sample", "outer_sample", "sample")
SUMS = ("sampling_function", "cfg_function", "calc_cond_batch")


def defined(module: str, *names: str) -> dict[str, Any]:
    """Functions of a module, as if its source had been run."""
    space: dict[str, Any] = {"__name__": module}
    exec("".join(f"def {name}(self): pass\n" for name in names), space)  # noqa: S102
    return {name: space[name] for name in names}


def guider(
    module: str = SAMPLERS,
    cls: str = "CFGGuider",
    wrappers: dict[str, Any] | None = None,
    overrides: tuple[str, ...] = (),
    **options: Any,
) -> Any:
    """A guider that stands on the host's, with methods of its own named `overrides`."""
    base: type = sys.modules[SAMPLERS].CFGGuider  # type: ignore[attr-defined]
    own = {"__module__": module, **defined(module, *overrides)}
    made: Any = base() if module == SAMPLERS else type(cls, (base,), own)()
    made.model_options, made.model_patcher = options, SimpleNamespace(wrappers=wrappers or {})
    return made


@pytest.fixture
def euler(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The host's sampler, as its KSampler makes it."""
    sampling = ModuleType(SAMPLING)
    sampling.sample_euler = named(SAMPLING, "sample_euler")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, SAMPLING, sampling)
    samplers: Any = ModuleType(SAMPLERS)
    samplers.CFGGuider = type("CFGGuider", (), {"__module__": SAMPLERS, **defined(SAMPLERS, *PATH)})
    for name, function in defined(SAMPLERS, *SUMS).items():
        setattr(samplers, name, function)
    monkeypatch.setitem(sys.modules, SAMPLERS, samplers)
    return SimpleNamespace(sampler_function=sampling.sample_euler, extra_options={})


@pytest.fixture
def why_not(part) -> Any:
    """Reason that no correction is made, as a word; "" if one is."""

    def reason(*given: Any) -> str:
        return str(part("nodes.host.samplers").why_not_corrected(*given) or "")

    return reason


@pytest.fixture
def takes_euler_steps(why_not) -> Any:
    return lambda *given: not why_not(*given)


def test_the_hosts_euler_takes_euler_steps_and_nothing_that_looks_like_it(takes_euler_steps, euler) -> None:
    assert takes_euler_steps(euler, guider())
    for other in (named(SAMPLING, "sample_heun"), named(SAMPLING, "sample_euler"), None):
        assert not takes_euler_steps(SimpleNamespace(sampler_function=other, extra_options={}), guider())
    for churn, expected in ((0.0, True), (0.5, False)):
        noisy = SimpleNamespace(sampler_function=euler.sampler_function, extra_options={"s_churn": churn})
        assert takes_euler_steps(noisy, guider()) is expected
    assert not takes_euler_steps(SimpleNamespace(), guider())


def test_a_guider_that_leaves_the_hosts_path_alone_passes_a_correction_on_whatever_its_name(
    takes_euler_steps, euler
) -> None:
    for module, cls in (
        ("comfy_extras.nodes_custom_sampler", "Guider_Basic"),
        ("comfy_extras.nodes_custom_sampler", "Guider_Renamed"),
        ("/opt/ComfyUI/custom_nodes/other/samplers", "CFGGuider"),
    ):
        assert takes_euler_steps(euler, guider(module, cls, overrides=("set_cfg", "set_conds"))), cls


@pytest.mark.parametrize("method", PATH)
def test_a_guider_with_code_of_its_own_on_that_path_passes_it_on_only_if_it_is_known_to(why_not, euler, method) -> None:
    for module, cls, expected in (
        ("comfy_extras.nodes_custom_sampler", "Guider_DualCFG", ""),
        (r"C:\ComfyUI\comfy_extras\nodes_lt", "Guider_LTXAVDualCFG", ""),
        ("comfy_extras.nodes_custom_sampler", "Guider_DualRenamed", "guider of another node"),
        ("comfy_extras.nodes_perpneg", "Guider_PerpNeg", "guider of another node"),
        ("/opt/ComfyUI/custom_nodes/other/samplers", "CFGGuider", "guider of another node"),
    ):
        assert why_not(euler, guider(module, cls, overrides=(method,))) == expected, (module, cls)
    patched = guider()
    setattr(patched, method, lambda *_: None)
    assert why_not(euler, patched) == "guider of another node"


@pytest.mark.parametrize("name", [*PATH, *SUMS])
def test_code_that_another_node_put_in_place_of_the_hosts_is_seen_under_the_hosts_name(
    why_not, euler, name: str
) -> None:
    samplers = sys.modules[SAMPLERS]
    theirs = defined("custom_nodes.other", name)[name]
    theirs.__module__ = SAMPLERS
    setattr(samplers if name in SUMS else samplers.CFGGuider, name, theirs)  # type: ignore[attr-defined]
    assert why_not(euler, guider()) == "guider of another node"


def test_a_guider_that_does_not_stand_on_the_hosts_is_not_known(why_not, euler, monkeypatch) -> None:
    made = guider()
    assert why_not(euler, SimpleNamespace(model_options={})) == "guider of another node"
    monkeypatch.delitem(sys.modules, SAMPLERS)
    assert why_not(euler, made) == "guider of another node"


def test_a_sampler_that_takes_a_source_of_noise_adds_some_unless_it_is_told_not_to(why_not, euler) -> None:
    def ancestral(model: Any, eta: float = 1.0, s_noise: float = 1.0, noise_sampler: Any = None) -> None: ...

    def lcm(model: Any, noise_sampler: Any = None) -> None: ...

    def sample_res_multistep(model: Any, s_noise: float = 1.0, noise_sampler: Any = None) -> None: ...

    def dpm_adaptive(model: Any, eta: float = 0.0, noise_sampler: Any = None) -> None: ...

    noise, steps = "noise added by the sampler", "other sampler than euler"
    for function, options, expected in (
        (ancestral, {}, noise),
        (ancestral, {"eta": 0.0}, steps),
        (ancestral, {"s_noise": 0.0}, steps),
        (ancestral, {"eta": 0.3}, noise),
        (lcm, {}, noise),
        (sample_res_multistep, {}, steps),
        (dpm_adaptive, {}, steps),
        (object(), {}, steps),
    ):
        sampler = SimpleNamespace(sampler_function=function, extra_options=options)
        assert why_not(sampler, guider()) == expected, (function, options)


def test_what_stands_against_a_correction_is_named(why_not, euler) -> None:
    other = named("custom_nodes.other", "f")
    assert why_not(SimpleNamespace(), guider()) == "other sampler than euler"
    noisy = SimpleNamespace(sampler_function=euler.sampler_function, extra_options={"s_churn": 0.5})
    assert why_not(noisy, guider()) == "noise added by the sampler"
    assert why_not(euler, guider(), object()) == "soft mask" == why_not(euler, guider(denoise_mask_function=other))
    assert why_not(euler, guider(sampler_cfg_function=other)) == "guidance of another node"
    assert why_not(euler, guider(wrappers={"predict_noise": {"k": [other]}})) == "wrapper of another node"


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
