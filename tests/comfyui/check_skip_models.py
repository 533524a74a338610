"""Runs in ComfyUI's Python: Skip Steps on models of more than one part: video with audio, Wan 2.2's two experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import host
import torch
from check_models import noise_mask, streams
from model_cases import CASES, WAN
from skipped_runs import FORECAST, SPREAD, STEPS, compared, counted, settings, skipping
from toy_runs import LATENT, calm, difference, run

CHECKS, check = host.registry()
LTX2 = next(case for case in CASES if case.name == "LTX-2, video and audio")
NOISE_LEVEL = ("adaln", "timestep")  # names of LTX-2's parameters for it


def ltx2() -> Any:
    return calm(host.build(LTX2.config, LTX2.unet), NOISE_LEVEL)


def restless_audio() -> Any:
    """A model whose audio, and nothing else, follows the noise level closely."""
    model = ltx2()
    with torch.no_grad():
        for name, value in model.model.diffusion_model.named_parameters():
            if name.startswith(("audio_adaln", "audio_scale_shift_table")):
                value.mul_(10.0)
    return model


def sampled(model: Any, **more: Any) -> Any:
    """A run of LTX-2: (video, audio)."""
    video = torch.zeros(1, *LTX2.latent)
    given = {"noise": streams(LTX2, host.noise_like(video)), "steps": STEPS, **more}
    return run(model, streams(LTX2, video), LTX2.conditioning(), **given).unbind()


def as_one(model: Any, **more: Any) -> torch.Tensor:
    """Both of `sampled`, end to end."""
    return torch.cat([part.flatten() for part in sampled(model, **more)])


@check("Skip Steps on LTX-2: one decision for video and audio, both answered, both near the run without it")
def _() -> None:
    for negative, cfg in ((None, 1.0), ([[torch.zeros(1, 5, 128), dict(LTX2.cond)]], 3.0)):
        for rule, threshold, most in (("forecast", 0.1, 0.05), ("easycache", 0.2, 0.3), ("spread", 0.0, 0.05)):
            given = {"rule": rule, "threshold": threshold}
            found = compared(ltx2(), sample=as_one, negative=negative, cfg=cfg, **given)
            assert 0 < found.off < most, (rule, cfg, found.off)
            assert any(made.corrected for made in found.report.decisions) == (rule == "spread")
            patched, _ = skipping(ltx2(), **given)
            pairs = zip(
                sampled(patched, negative=negative, cfg=cfg), sampled(ltx2(), negative=negative, cfg=cfg), strict=True
            )
            off = [difference(out, plain) for out, plain in pairs]
            assert all(0 < part < most for part in off), (rule, cfg, off)


@check("on LTX-2 audio that changes faster than the video has more evaluations computed")
def _() -> None:
    calm_audio, handle = skipping(ltx2())
    sampled(calm_audio)
    few = handle.report
    restless, handle = skipping(restless_audio())
    sampled(restless)
    assert handle.report.skipped < few.skipped, (handle.report.summary(), few.summary())

    # Of the same runs, taken as one latent of numbers, the error is smaller: the audio's is lost in the video's.
    evaluations = host.pack("nodes.host.adapter")
    original = evaluations.evaluation_of
    evaluations.evaluation_of = lambda *args: replace(original(*args), streams=())
    try:
        mixed, other = skipping(restless_audio(), threshold=0.0)
        sampled(mixed)
    finally:
        evaluations.evaluation_of = original
    apart, handle = skipping(restless_audio(), threshold=0.0)
    sampled(apart)
    errors = [(a.error, b.error) for a, b in zip(handle.report.decisions, other.report.decisions, strict=True)]
    assert len(errors) == STEPS and all(a > b for a, b in errors[1:] if a is not None), errors


def expert(seed: int) -> Any:
    """One of two models of one kind."""
    return calm(host.build("WAN21_T2V", {**WAN, "model_type": "t2v"}, seed=seed))


class OneStateForBoth:
    """A step cache that outlives its run and takes all experts for one, as EasyCache's code for Wan 2.2 has it."""

    def __init__(self) -> None:
        made = settings("easycache", 1e9, 2, max_skips=None)
        self.inner = host.pack("draftattn_core.run.step_cache").RunStepCache(made)

    def answer(self, x: torch.Tensor, evaluation: Any) -> Any:
        return self.inner.answer(x, self.taken_for_one(evaluation))

    def store(self, x: torch.Tensor, prediction: torch.Tensor, evaluation: Any) -> None:
        self.inner.store(x, prediction, self.taken_for_one(evaluation))

    @staticmethod
    def taken_for_one(evaluation: Any) -> Any:
        branches = tuple(replace(branch, key=index) for index, branch in enumerate(evaluation.branches))
        return replace(evaluation, expert="both", branches=branches, is_last=False)

    def clear(self) -> None:
        pass


@check("Wan 2.2: the second expert begins anew where one state for both answers it with the first expert's output")
def _() -> None:
    high, low, half = expert(0), expert(5), STEPS
    middle = run(high, steps=2 * STEPS, start_step=0, last_step=half)

    def second_half(model: Any, start: torch.Tensor) -> list[torch.Tensor]:
        """Denoised latents of every step."""
        found: list[torch.Tensor] = []
        none = torch.zeros_like(LATENT)
        more = {"noise": none, "disable_noise": True, "start_step": half, "last_step": 10000}
        run(model, start, steps=2 * STEPS, callback=lambda _, x0, *__: found.append(x0.clone()), **more)
        return found

    plain = second_half(low, middle)
    # Ours: Skip Steps on either model, as on the two loaders of a workflow.
    off = []
    for rule in (FORECAST, SPREAD):
        patched_high, handle_high = skipping(high, **rule)
        run(patched_high, steps=2 * STEPS, start_step=0, last_step=half)
        patched_low, handle_low = skipping(low, **rule)
        patched_low, calls = counted(patched_low)
        ours = second_half(patched_low, middle)
        assert handle_high.report.skipped > 0 and handle_low.report.skipped > 0
        assert torch.equal(ours[0], plain[0]), "the second expert's first evaluation is its own"
        assert str(handle_low.report.decisions[0].outcome) == "computed" and len(calls) < STEPS
        assert any(made.corrected for made in handle_low.report.decisions) == (rule is SPREAD)
        off.append(difference(ours[-1], plain[-1]))

    one = OneStateForBoth()
    for model, start in ((high, None), (low, middle)):
        shared, handle = skipping(model, rule="easycache")
        handle.new_step_cache = lambda: one
        if start is None:
            run(shared, steps=2 * STEPS, start_step=0, last_step=half)
        else:
            theirs = second_half(shared, start)
    at_switch = difference(theirs[0], plain[0])
    assert at_switch > 0.1, f"the defect does not show: {at_switch}"
    assert max(off) < 0.1 * difference(theirs[-1], plain[-1]), off


@check("Skip Steps on every model of the table: threshold 0 is the model to the bit, and evaluations are answered")
def _() -> None:
    seen = 0
    for case in CASES:
        try:
            model = host.build(case.config, case.unet)
        except host.Absent:
            continue
        if "context_latents" in case.cond and not hasattr(model.model, "resize_cond_for_context_window"):
            continue

        def sample(patched: Any, case: Any = case, **more: Any) -> torch.Tensor:
            latent = torch.zeros(1, *case.latent)
            given = {"noise": streams(case, host.noise_like(latent)), "noise_mask": noise_mask(case), **more}
            out = run(patched, streams(case, latent), case.conditioning(), sampler=case.sampler, **given)
            return out if case.audio is None else torch.cat([part.flatten() for part in out.unbind()])

        if case.sampler == "ar_video":
            # Frame by frame: every evaluation leaves keys and values that the next frame needs.
            patched, handle = skipping(model, first=2, threshold=1e9)
            assert torch.equal(sample(patched, steps=6), sample(model, steps=6)) and handle.report.skipped == 0
            reasons = {str(made.reason) for made in handle.report.decisions}
            assert reasons == {"nobody says what the model predicts"}, reasons
            continue
        # Random weights: nothing about the output can be foretold, so the bounds let everything pass.
        for rule in (
            {"threshold": 1e9, "first": 2},
            {"rule": "spread", "share": 0.5, "max_forecast_error": float("inf")},
        ):
            report = compared(model, sample=sample, steps=6, **rule).report
            assert {str(made.outcome) for made in report.decisions} == {"computed", "forecast"}, (case.name, rule)
        behind = [
            made
            for before, made in zip(report.decisions, report.decisions[1:], strict=False)
            if str(made.outcome) == "computed" and str(before.outcome) == "forecast"
        ]
        assert behind and all(made.corrected != (made.uncorrected is not None) for made in behind), case.name
        assert case.sampler != "euler" or case.cond or all(made.corrected for made in behind), case.name
        seen += 1
    assert seen > 20, seen
