"""Runs in ComfyUI's Python: Skip Steps under every sampler that ComfyUI has."""

from __future__ import annotations

from itertools import product
from typing import Any

import host
import torch
from skipped_runs import FORECAST, RULES, SHORT_TEXT, SPREAD, STEPS, compared, counted, settings, skipping
from toy_runs import LATENT, TEXT, calm, difference, node, run, wan

CHECKS, check = host.registry()
# Deterministic samplers: of one evaluation per step, some remembering steps before; and of two.
SMOOTH = ("euler", "dpmpp_2m", "uni_pc", "heun", "dpm_2")
NOISY = ("euler_ancestral", "dpmpp_2s_ancestral", "dpm_2_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde")
RENOISED = ("churn", "euler_ancestral", "dpmpp_2m_sde")
# How far a run ends from the one without skipping, at most. The sampler named is not made for flows: its latents have
# other noise than the level says that the model is told.
NEAR, FAR = 0.15, {"dpmpp_2s_ancestral_cfg_pp": 0.6}


@check("Skip Steps under every sampler of ComfyUI: each evaluation is computed or skipped with a reason, nothing fails")
def _() -> None:
    import comfy.samplers

    skipping_reasons, failing = {"planned", "below the threshold"}, {"error", "stood aside after errors"}
    upwards: dict[str, int] = {}
    for sampler in comfy.samplers.SAMPLER_NAMES:
        plain = run(calm(wan()), steps=STEPS, sampler=sampler)
        for rule in (SPREAD, FORECAST):
            where = (sampler, rule)
            asked, every = counted(calm(wan()), "outside")
            patched, handle = skipping(asked, **rule)
            patched, calls = counted(patched, "inside")
            out = run(patched, steps=STEPS, sampler=sampler)
            report, cache = handle.report, handle.run.step_cache
            assert torch.isfinite(out).all() and difference(out, plain) < FAR.get(sampler, NEAR), where
            assert report.notes == [] and cache.errors == 0 and cache.held_bytes == 0, (where, report.notes)
            # One decision for each, at its noise level, and it is what was done.
            made = report.decisions
            assert [one.index for one in made] == list(range(len(every))), where
            assert all(abs(one.level - call.sigma) < 1e-5 for one, call in zip(made, every, strict=True)), where
            computed = [call for one, call in zip(made, every, strict=True) if str(one.outcome) == "computed"]
            assert computed == calls and report.skipped == len(every) - len(calls), (where, report.summary())
            reasons = {str(one.reason) for one in made}
            assert not reasons & failing, (where, reasons)
            assert all(str(one.outcome) == "computed" or str(one.reason) in skipping_reasons for one in made), where
            # Where nothing was skipped, what would have stood in for it was measured to err.
            assert report.skipped > 0 or reasons & {"forecasts err too much", "threshold reached"}, (where, reasons)
            rises = [one for before, one in zip(made, made[1:], strict=False) if one.level > before.level]
            # Where the noise has gone up again there is nothing to predict from.
            assert all(str(one.outcome) == "computed" and one.error is None for one in rises), where
            upwards[sampler] = max(upwards.get(sampler, 0), len(rises))
    # Heun++ looks up to two levels ahead in a step and begins the next one behind the first of them.
    assert upwards["heunpp2"] == STEPS - 2 and upwards["heun"] == upwards["dpm_2"] == 0, upwards


@check("Skip Steps under second-order and multistep samplers: near the run without it")
def _() -> None:
    import comfy.samplers

    # Of exp_heun_2_x0 the two visits to a level differ by rounding.
    twice = ("heun", "dpm_2", "exp_heun_2_x0")
    samplers = [name for name in (*SMOOTH, "exp_heun_2_x0") if name in comfy.samplers.SAMPLER_NAMES]
    for sampler, (rule, most) in product(samplers, RULES):
        found = compared(calm(wan()), sampler=sampler, **rule)
        assert 0 < found.off < most, (sampler, rule, found.off)
        if sampler in twice:
            assert len(found.report.decisions) == 2 * STEPS - 1
        reasons = {str(made.reason) for made in found.report.decisions}
        assert "noise level went up" not in reasons and (rule is not SPREAD or reasons == {"planned"}), (
            sampler,
            reasons,
        )
        assert max(made.error or 0.0 for made in found.report.decisions) < 1.0, sampler


@check("Skip Steps under ancestral and SDE samplers: the forecast measures that it errs, and what is reused stays near")
def _() -> None:
    for sampler in NOISY:
        found = compared(calm(wan()), sampler=sampler, rule="easycache", threshold=0.3)
        assert 0 < found.off < 0.3, (sampler, found.off)
        patched, handle = skipping(calm(wan()))
        out, plain = run(patched, steps=STEPS, sampler=sampler), run(calm(wan()), steps=STEPS, sampler=sampler)
        assert handle.report.skip_error() > 0.1, (sampler, handle.report.summary())
        off = float((out - plain).norm() / plain.norm())
        assert off < 0.02 and (off == 0.0) == (handle.report.skipped == 0), (sampler, off, handle.report.summary())


@check("Skip Steps by a plan under samplers that add noise: x0 is forecast, and a forecast that errs much is not made")
def _() -> None:
    for sampler in NOISY:
        plain = run(calm(wan()), steps=STEPS, sampler=sampler)
        off, extra = [], []
        for most in (settings().max_forecast_error, 0.05, float("inf")):
            patched, handle = skipping(calm(wan()), **SPREAD, max_forecast_error=most)
            off.append(difference(run(patched, steps=STEPS, sampler=sampler), plain))
            made = handle.report.decisions
            extra.append(sum(str(one.reason) == "forecasts err too much" for one in made))
            assert all(one.estimate <= most for one in made if one.estimate and str(one.outcome) == "forecast"), sampler
            told = host.pack("draftattn_core.run.skips").reasons(made)
            assert told.get("forecasts err too much", 0) == extra[-1]
        assert extra[1] >= extra[0] > extra[2] == 0, (sampler, extra)
        # Weights are random, so the noise is not told from the video and nothing can be foretold.
        assert off[1] <= off[0] < 0.02 and off[2] > 0.1, (sampler, off)


@check("Skip Steps by a plan: samplers and guidance that a correction would mislead are given the model's own outputs")
def _() -> None:
    import comfy.samplers

    def sample(model: Any, sampler: str, correct: bool) -> torch.Tensor:
        patched, handle = skipping(model, **SPREAD, correct=correct)
        if sampler == "churn":
            sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
            torch.manual_seed(0)
            chosen = comfy.samplers.ksampler("euler", {"s_churn": 0.5, "s_tmax": 0.9})
            out = comfy.samplers.sample(
                patched, host.noise_like(LATENT), TEXT, TEXT, 1.0, torch.device("cpu"), chosen, sigmas,
                latent_image=LATENT, disable_pbar=True, seed=7,
            )  # fmt: skip
        else:
            guided = {"negative": SHORT_TEXT, "cfg": 3.0} if sampler == "euler" else {}
            out = run(patched, steps=STEPS, sampler=sampler, **guided)
        report = handle.report
        assert report.skipped > 0 and torch.isfinite(out).all(), (sampler, report.summary())
        assert not any(made.corrected for made in report.decisions), sampler
        why = {str(made.uncorrected) for made in report.decisions if made.uncorrected is not None}
        left = {"euler": "guidance of another node", **dict.fromkeys(RENOISED, "noise added by the sampler")}
        assert why == ({left.get(sampler, "other sampler than euler")} if correct else set()), (sampler, why)
        if sampler not in (*RENOISED, "heun"):
            planned = settings(**SPREAD).planned_steps(STEPS)
            assert {made.index for made in report.decisions if str(made.outcome) == "computed"} == planned, sampler
        return out

    for sampler in (*SMOOTH[1:4], *RENOISED):
        assert torch.equal(sample(calm(wan()), sampler, True), sample(calm(wan()), sampler, False)), sampler

    for module, name, given in (
        ("nodes_apg", "APG", (1.0, 5.0, -0.5)),
        ("nodes_cfg", "CFGZeroStar", ()),
    ):
        models = [node(module, name).execute(calm(wan()), *given).args[0] for _ in range(2)]
        corrected, loose = (sample(model, "euler", correct) for model, correct in zip(models, (True, False)))
        assert torch.equal(corrected, loose), name
