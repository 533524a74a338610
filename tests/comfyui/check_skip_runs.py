"""Runs in ComfyUI's Python: Skip Steps under everything a sampling run may be, held against the run without it."""

from __future__ import annotations

from itertools import product
from typing import Any

import host
import torch
from skipped_runs import (
    EASYCACHE,
    FORECAST,
    RULES,
    SHORT_TEXT,
    SPREAD,
    STEPS,
    compared,
    counted,
    lora,
    put_right,
    settings,
    skipping,
)
from toy_runs import LATENT, TEXT, calm, difference, node, run, wan

CHECKS, check = host.registry()
OTHER_TEXT = [[torch.zeros(1, 7, 64), {}]]
ALL = {"threshold": 1e9, "first": 2, "max_skips": None}


@check("Skip Steps with guidance stacked, split and none: near the run without it, one decision for all conditions")
def _() -> None:
    for negative, cfg, each in ((SHORT_TEXT, 3.0, 1), (OTHER_TEXT, 3.0, 2), (TEXT, 1.0, 1)):
        for rule, most in RULES:
            found = compared(calm(wan()), each=each, negative=negative, cfg=cfg, **rule)
            assert 0 < found.off < most, (cfg, rule, found.off)
            assert {(made.branches_computed, made.branches_skipped) for made in found.report.decisions} == (
                {(1, 0), (0, 1)} if cfg == 1.0 else {(2, 0), (0, 2)}
            )


@check("Skip Steps with conditions of areas: what the host sets against each is a branch of its own")
def _() -> None:
    # The host names it like the condition it stands against, and may stack the two.
    other = 0.3 * TEXT[0][0]
    part = [[TEXT[0][0], {}], [other, {"area": (6, 6, 0, 4), "strength": 1.0}]]
    halves = [[TEXT[0][0], {"area": (6, 5, 0, 0)}], [other, {"area": (6, 5, 0, 5)}]]
    for (areas, share), (rule, most) in product(((part, 0.5), (halves, 1.0)), RULES):
        found = compared(calm(wan()), each=2, positive=areas, negative=SHORT_TEXT, cfg=3.0, **rule)
        assert 0 < found.off < share * most, (rule, found.off)


@check("Skip Steps with a batch of two different videos, and the noise of one alone decides for neither")
def _() -> None:
    noise = host.noise_like(LATENT.repeat(2, 1, 1, 1, 1))
    for rule, most in RULES:
        found = compared(
            calm(wan()), latent=LATENT.repeat(2, 1, 1, 1, 1), noise=noise, negative=SHORT_TEXT, cfg=3.0, **rule
        )
        assert 0 < found.off < most, (rule, found.off)
    assert rule is FORECAST
    alone = [compared(calm(wan()), noise=noise[index : index + 1], negative=SHORT_TEXT, cfg=3.0) for index in (0, 1)]
    # The errors measured are those of the video that errs more, as long as both have the same history.
    worst = [max(pair) for pair in zip(*([made.error or 0.0 for made in one.report.decisions[:3]] for one in alone))]
    for made, expected in zip(found.report.decisions[:3], worst, strict=True):
        assert abs((made.error or 0.0) - expected) < 1e-3 * max(expected, 1e-3), (made.error, expected)


@check("Skip Steps where rounding has the noise begin above 1, conditions split: skipped as planned")
def _() -> None:
    shift = node("nodes_model_advanced", "ModelSamplingSD3")
    (model,) = shift().patch(calm(wan()), 4.03)
    assert float(model.get_model_object("model_sampling").sigma_max) > 1.0
    for rule, most in RULES:
        found = compared(model, each=2, negative=OTHER_TEXT, cfg=3.0, **rule)
        assert 0 < found.off < most, (rule, found.off)


@check("Skip Steps from an image or video (denoise below 1)")
def _() -> None:
    started = 0.5 * host.noise_like(LATENT, seed=3)
    for rule, most in RULES:
        found = compared(calm(wan()), latent=started, denoise=0.6, negative=SHORT_TEXT, cfg=3.0, **rule)
        assert 0 < found.off < most, (rule, found.off)
        assert found.report.decisions[0].progress > 0.3, "the run begins in the middle"


@check("Skip Steps by a plan under euler: where a latent put right at each computed step ends")
def _() -> None:
    windows = node("nodes_context_windows", "WanContextWindowsManualNode")
    started = 0.5 * host.noise_like(LATENT, seed=3)
    two = LATENT.repeat(2, 1, 1, 1, 1)
    for given in (
        {"negative": SHORT_TEXT, "cfg": 3.0},
        {"negative": OTHER_TEXT, "cfg": 3.0},
        {"cfg": 1.0, "sampler": "ddim"},
        {"latent": two, "noise": host.noise_like(two), "negative": SHORT_TEXT, "cfg": 3.0},
        {"latent": started, "denoise": 0.5, "negative": SHORT_TEXT, "cfg": 3.0},
        {"start_step": 0, "last_step": STEPS, "steps": 2 * STEPS},
        {"latent": torch.zeros(1, 16, 9, 6, 10), "windows": True},
    ):

        def made(model: Any = None, windowed: bool = "windows" in given) -> Any:
            if not windowed:
                return calm(wan())
            return windows.execute(calm(wan()), 21, 8, "standard_static", 1, False, "pyramid", False).args[0]

        more = {"steps": STEPS, **{name: value for name, value in given.items() if name != "windows"}}
        plain = run(made(), **more)
        with put_right(SPREAD["share"]):
            expected = run(made(), **more)
        patched, handle = skipping(made(), **SPREAD)
        found = run(patched, **more)
        off, apart = difference(found, expected), difference(expected, plain)
        assert off < 2e-5 and off < 0.01 * apart, (given, off, apart)
        computed = [made for made in handle.report.decisions if str(made.outcome) == "computed"]
        assert sum(made.corrected for made in computed) == len(computed) - len({made.window for made in computed})
        assert {str(made.reason) for made in handle.report.decisions} == {"planned"}
        loose, _ = skipping(made(), **SPREAD, correct=False)
        assert apart < 0.6 * difference(run(loose, **more), plain), "the correction gains little"


@check("Skip Steps by a plan with guidance and masks that pass a correction on: nearer than without it")
def _() -> None:
    def rescaled(model: Any) -> Any:
        return node("nodes_model_advanced", "RescaleCFG")().patch(model, 0.7)[0]

    def skip_layer(model: Any) -> Any:
        return node("nodes_slg", "SkipLayerGuidanceDiT").execute(model, 3.0, 0.1, 0.6, "1", "1", 0.0).args[0]

    half = torch.zeros(1, 1, *LATENT.shape[2:])
    half[..., 5:] = 1.0
    soft = torch.linspace(0, 1, 10).expand_as(half).clone()
    started = 0.5 * host.noise_like(LATENT, seed=3)
    for change, mask, corrects in (
        (rescaled, None, True),
        (skip_layer, None, True),
        (lambda model: model, half, True),
        (lambda model: model, soft, False),
    ):
        given = {"steps": STEPS, "negative": SHORT_TEXT, "cfg": 3.0}
        if mask is not None:
            given |= {"latent": started, "noise_mask": mask}
        plain, off = run(change(calm(wan())), **given), []
        for correct in (True, False):
            patched, handle = skipping(change(calm(wan())), **SPREAD, correct=correct)
            off.append(difference(run(patched, **given), plain))
            assert any(made.corrected for made in handle.report.decisions) == (correct and corrects)
        assert off[0] < 0.75 * off[1] if corrects else off[0] == off[1], (change, off)


@check("guidance that asks for the condition again and says in an option what it leaves out: a branch of its own")
def _() -> None:
    """As LTX's STG and modality guidance do."""
    import comfy.samplers

    option = "stg_self_attn_blocks"

    def guided(starts: float) -> Any:
        model = calm(wan())
        level = model.get_model_object("model_sampling").percent_to_sigma(starts)

        def perturbed(executor: Any, *args: Any, **kwargs: Any) -> Any:
            options = next(
                value for value in (*args, *kwargs.values()) if isinstance(value, dict) and "sigmas" in value
            )
            out = executor(*args, **kwargs)
            return 0.3 * out if option in options else out

        def guide(args: dict[str, Any]) -> torch.Tensor:
            if float(args["sigma"][0]) > level:
                return args["denoised"]  # type: ignore[no-any-return]
            options = {**args["model_options"].get("transformer_options", {}), option: frozenset({0})}
            again = {**args["model_options"], "transformer_options": options}
            found = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], again)
            return args["denoised"] + args["cond_denoised"] - found[0]  # type: ignore[no-any-return]

        model.add_wrapper_with_key("diffusion_model", "perturbed", perturbed)
        model.set_model_sampler_post_cfg_function(guide)
        return model

    given = {"negative": SHORT_TEXT, "cfg": 3.0}
    unguided = run(calm(wan()), steps=STEPS, **given)
    for starts in (0.0, 0.05, 0.3):
        plain = run(guided(starts), steps=STEPS, **given)
        acts = difference(unguided, plain)
        for rule, _ in RULES:
            patched, handle = skipping(guided(starts), **rule)
            off = difference(run(patched, steps=STEPS, **given), plain)
            report = handle.report
            assert off < 0.2 * acts, (starts, rule, off, acts, report.summary())
            assert report.skipped > 0 and len(report.decisions) == STEPS, (starts, rule, report.summary())


@check("under a guider of three conditions the positive one decides, wherever the guider puts it")
def _() -> None:
    import comfy.samplers

    dual = node("nodes_custom_sampler", "Guider_DualCFG")
    names: list[tuple[Any, ...]] = []

    class Spy:
        """A step cache that computes everything and notes which branch decides."""

        def answer(self, x: torch.Tensor, evaluation: Any) -> None:
            at = evaluation.conditional
            names.append((None if at is None else evaluation.branches[at].key[0][0], len(evaluation.branches)))

        def store(self, *_: Any) -> None:
            return None

        def clear(self) -> None:
            return None

    for cfg2, nested in ((2.0, False), (1.0, False), (2.0, True)):
        names.clear()
        patched, handle = skipping(calm(wan()))
        handle.new_step_cache = Spy
        guider = dual(patched)
        guider.set_conds(TEXT, [[0.5 * TEXT[0][0], {}]], OTHER_TEXT)
        guider.set_cfg(3.0, cfg2, nested)
        levels = comfy.samplers.calculate_sigmas(patched.get_model_object("model_sampling"), "simple", 4)
        guider.sample(host.noise_like(LATENT), LATENT, comfy.samplers.sampler_object("euler"), levels, seed=0)
        positive = guider.original_conds["positive"][0]["uuid"]
        assert [name for name, _ in names].count(positive) == 4, (cfg2, nested, names)
        assert {name for name, _ in names} <= {positive, None}, (cfg2, nested, names)


@check("Skip Steps in both halves of a run under KSamplerAdvanced")
def _() -> None:
    none = torch.zeros_like(LATENT)

    def halves(model: Any, leftover: bool, **more: Any) -> torch.Tensor:
        """Without leftover noise the first half ends clean, and the second one adds noise of its own."""
        first = run(model, start_step=0, last_step=STEPS, force_full_denoise=not leftover, **more)
        noise = {"noise": none, "disable_noise": True} if leftover else {"noise": host.noise_like(LATENT, seed=9)}
        return run(model, first, start_step=STEPS, last_step=10000, force_full_denoise=True, **noise, **more)

    for leftover, (rule, most) in product((True, False), RULES):
        model = calm(wan())
        bare, every = counted(model)
        plain = halves(bare, leftover, steps=2 * STEPS)
        exact, _ = skipping(model, **{**rule, "threshold": 0.0, "share": 1.0})
        assert torch.equal(halves(exact, leftover, steps=2 * STEPS), plain) and len(every) == 2 * STEPS
        patched, handle = skipping(model, **rule)
        patched, calls = counted(patched)
        out = halves(patched, leftover, steps=2 * STEPS)
        off = float((out - plain).norm() / plain.norm())
        assert 0 < off < most, (leftover, rule, off)
        second = handle.report
        # The second half is a run of its own: it begins in the middle of the noise, without history.
        assert [made.index for made in second.decisions] == list(range(STEPS))
        assert second.decisions[0].progress > 0.4 and second.skipped > 0
        computed = [index for index, made in enumerate(second.decisions) if str(made.outcome) == "computed"]
        if rule is not SPREAD:
            assert computed[:3] == [0, 1, 2] and len(calls) - len(computed) < STEPS
            continue
        planned = settings(**SPREAD).planned_steps(STEPS)
        assert set(computed) == planned and len(calls) == 2 * len(planned)
        assert sum(made.corrected for made in second.decisions) == len(planned) - 1


@check("Skip Steps in context windows: a history and a decision for each, near the run without it")
def _() -> None:
    windows = node("nodes_context_windows", "WanContextWindowsManualNode")
    model = windows.execute(calm(wan()), 21, 8, "standard_static", 1, False, "pyramid", False).args[0]
    latent = torch.zeros(1, 16, 9, 6, 10)
    planned = compared(model, windows=True, latent=latent, **SPREAD)
    assert 0 < planned.off < 0.04 and any(made.corrected for made in planned.report.decisions), planned.off
    for rule, most in ((FORECAST, 0.04), (EASYCACHE, 0.2)):
        found = compared(model, windows=True, latent=latent, **rule)
        assert 0 < found.off < most, (rule, found.off)
        seen = {made.window for made in found.report.decisions}
        assert len(seen) > 1 and None not in seen and len(found.report.decisions) == STEPS * len(seen)
        by_window = [[made for made in found.report.decisions if made.window == window] for window in seen]
        assert all(str(made.outcome) == "computed" for own in by_window for made in own[:2])


@check("Skip Steps with a LoRA hook on one condition: near the run without it, and the hook does not outlive it")
def _() -> None:
    import comfy.hooks

    hook = comfy.hooks.create_hook_lora(lora(2), 0.2, 0.0)
    hooked = comfy.hooks.set_hooks_for_conditioning(TEXT, hook)
    model = calm(wan())
    before = run(model, steps=STEPS, negative=SHORT_TEXT, cfg=3.0)
    for rule, most in RULES:
        found = compared(model, each=2, positive=hooked, negative=SHORT_TEXT, cfg=3.0, **rule)
        assert 0 < found.off < most, (rule, found.off)
    assert torch.equal(run(model, steps=STEPS, negative=SHORT_TEXT, cfg=3.0), before), "the hook outlived its run"


@check(
    "a condition that changes within the run, by range, a hook's or a control's strength or where control ends, is "
    "computed where it does; control that fades by itself is left to the measured error"
)
def _() -> None:
    import comfy.controlnet
    import comfy.hooks

    class Control(comfy.controlnet.ControlBase):  # type: ignore[misc]
        """Stops in the middle of the run, as the host's do; what it says is not read by this model."""

        def get_control(self, x: Any, t: Any, *_: Any) -> Any:
            return {} if t[0] >= self.timestep_range[1] else None

    class Chain(Control):
        """Two members that add to different blocks; from the middle on the first is silent."""

        def get_control(self, x: Any, t: Any, *_: Any) -> Any:
            added = torch.zeros(1)
            return {"output": [added if t[0] >= self.timestep_range[1] else None, None, added]}

    class Strong(Control):
        """Says how strong it is, as the host's do."""

        def get_control(self, x: Any, t: Any, *_: Any) -> Any:
            return {"output": [torch.full((1,), self.strength)]}

    class Fading(Control):
        """Half as strong from the middle of the run on, and its strength is the same all along."""

        def get_control(self, x: Any, t: Any, *_: Any) -> Any:
            return {"output": [torch.ones(1) * (1.0 if t[0] >= self.timestep_range[1] else 0.5)]}

    model = calm(wan())
    middle = float(model.get_model_object("model_sampling").percent_to_sigma(0.5))
    ranges = [
        [TEXT[0][0], {"start_percent": 0.0, "end_percent": 0.5}],
        [0.5 * TEXT[0][0], {"start_percent": 0.5, "end_percent": 1.0}],
    ]
    # Alike but for the strength of their control.
    strengths = [
        [
            TEXT[0][0],
            {
                "start_percent": start,
                "end_percent": start + 0.5,
                "control": Strong().set_cond_hint(None, strength, (0.0, 1.0)),
                "control_apply_to_uncond": False,
            },
        ]
        for start, strength in ((0.0, 1.0), (0.5, 0.4))
    ]
    hook = comfy.hooks.create_hook_lora(lora(2), 1.0, 0.0)
    frames = comfy.hooks.HookKeyframeGroup()
    frames.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.0))
    frames.add(comfy.hooks.HookKeyframe(strength=0.2, start_percent=0.5))
    hook.set_keyframes_on_hooks(frames)
    alone, chain, fading = (made.set_cond_hint(None, 1.0, (0.0, 0.5)) for made in (Control(), Chain(), Fading()))
    # Where it stops at a level of the schedule, that one still has it.
    stops = middle * (1 - 1e-6)
    for positive, after in (
        (ranges, middle * (1 + 1e-6)),
        (strengths, middle * (1 + 1e-6)),
        (comfy.hooks.set_hooks_for_conditioning(TEXT, hook), middle * (1 + 1e-6)),
        *(
            ([[TEXT[0][0], {"control": control, "control_apply_to_uncond": False}]], stops)
            for control in (alone, chain, fading)
        ),
    ):
        bare, every = counted(model)
        run(bare, steps=STEPS, positive=positive, negative=OTHER_TEXT, cfg=3.0)
        levels = sorted({call.sigma for call in every}, reverse=True)
        switch = next(index for index, sigma in enumerate(levels) if sigma <= after)
        planned = settings(**SPREAD).planned_steps(STEPS)
        # By a threshold everything is skipped that may be: what is left had to be computed.
        # Where two with a control each meet, they are evaluated apart, and the one that ends decides once more.
        second = switch + (2 if positive is strengths else 1)
        anew = set() if positive[0][1].get("control") is fading else {switch, second}
        for rule, expected in ((ALL, {0, 1, *anew, STEPS - 1}), (SPREAD, {*planned, *(anew - {second})})):
            patched, handle = skipping(model, **rule, max_reach=1e9)
            patched, calls = counted(patched)
            run(patched, steps=STEPS, positive=positive, negative=OTHER_TEXT, cfg=3.0)
            computed = [levels.index(call.sigma) for call in calls if set(call.kinds) == {0}]
            both = [switch] if positive is strengths and rule is SPREAD else []
            assert computed == sorted([*expected, *both]), (rule, switch, computed, handle.report.summary())


@check("Skip Steps holds three latents of the condition and two of every other at most, and none after the run")
def _() -> None:
    for rule, held_most in (("easycache", 5), ("forecast", 4), ("spread", 4)):
        for negative in (SHORT_TEXT, OTHER_TEXT):
            patched, handle = skipping(calm(wan()), rule=rule, threshold=0.1)
            held: list[int] = []
            watch = lambda *_, handle=handle, held=held: held.append(handle.run.step_cache.held_bytes)  # noqa: E731
            run(patched, steps=STEPS, negative=negative, cfg=3.0, callback=watch)
            assert handle.report.skipped > 0 and max(held) == held_most * LATENT.nbytes, (rule, held)
            assert handle.run.step_cache.held_bytes == 0


@check("a cancelled run leaves no history to the next one")
def _() -> None:
    class Cancelled(Exception):
        pass

    def cancel(step: int, *_: Any) -> None:
        if step == 6:
            raise Cancelled

    fresh, _ = skipping(calm(wan()))
    expected = run(fresh, steps=STEPS)
    patched, handle = skipping(calm(wan()))
    try:
        run(patched, latent=0.3 + LATENT, steps=STEPS, callback=cancel)
    except Cancelled:
        pass
    else:
        raise AssertionError("the run was not cancelled")
    assert handle.report.cancelled == f"cancelled after step 7 of {STEPS}" and handle.run.step_cache.held_bytes == 0
    assert torch.equal(run(patched, steps=STEPS), expected)


@check("what fails in the step cache is computed, counted and told")
def _() -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("broken on purpose")

    forecast = host.pack("draftattn_core.run.step_cache.forecast").ForecastState
    plain = run(calm(wan()), steps=STEPS)
    original, forecast.predict = forecast.predict, broken
    try:
        patched, handle = skipping(calm(wan()))
        assert torch.equal(run(patched, steps=STEPS), plain)
    finally:
        forecast.predict = original
    reasons = host.pack("draftattn_core.run.skips").reasons(handle.report.decisions)
    assert reasons["error"] >= 1 and reasons["stood aside after errors"] >= 1, reasons
    assert handle.report.outcomes == {"computed": STEPS}
