"""EasyCache, held to a plain implementation of its published rule, decision by decision."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.run.step_cache import Reason, RunStepCache, StepCacheSettings, nothing_to_gain
from draftattention.draftattn_core.run.step_cache.settings import PublishedModel

from .step_cases import SHAPE, Host, Model, euler, levels, noise, outcomes, run, smooth_model

GUIDANCE = 3.0


@dataclass
class PlainEasyCache:
    """The rule as its description has it: a list of what happened, and means taken anew wherever they are needed."""

    tau: float
    first: int
    steps: int
    inputs: list[Tensor] = field(default_factory=list)
    computed: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    other: Tensor | None = None
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    said: str = ""

    def step(self, cond: Model, uncond: Model, x: Tensor, s: float) -> tuple[Tensor, Tensor]:
        if self.should_compute(x):
            v, w = cond(x, s), uncond(x, s)
            self.computed.append((x, v))
            self.other = w - x
            self.said += "C"
        else:
            x_c, v_c = self.computed[-1]
            assert self.other is not None
            v, w = x + (v_c - x_c), x + self.other
            self.said += "r"
        self.inputs.append(x)
        return v, w

    def should_compute(self, x: Tensor) -> bool:
        step = len(self.inputs)
        if step < self.first or step == self.steps - 1 or len(self.computed) < 2:
            self.total = torch.zeros(())
            return True
        (x_b, v_b), (x_c, v_c) = self.computed[-2:]
        rate = (v_c - v_b).abs().mean() / (x_c - x_b).abs().mean()
        self.total = self.total + rate * ((x - self.inputs[-1]).abs().mean() / v_c.abs().mean())
        if self.total < self.tau:
            return False
        self.total = torch.zeros(())
        return True


def plain_run(
    tau: float, first: int, steps: int, seed: int, shift: float = 5.0, shape: tuple[int, ...] = SHAPE
) -> tuple[str, list[Tensor]]:
    plain = PlainEasyCache(tau, first, steps)
    cond, uncond = smooth_model(seed), smooth_model(seed + 50)

    def guided(x: Tensor, s: float, _step: int, _is_last: bool) -> Tensor:
        v, w = plain.step(cond, uncond, x, s)
        return w + GUIDANCE * (v - w)

    path = euler(guided, noise(seed, shape), levels(steps, shift))
    return plain.said, path


def cached_run(
    settings: StepCacheSettings, steps: int, seed: int, how: str, shape: tuple[int, ...] = SHAPE, shift: float = 5.0
) -> tuple[RunStepCache, list[Tensor]]:
    cache = RunStepCache(settings)
    host = Host(cache, steps=steps)
    cond, uncond = smooth_model(seed), smooth_model(seed + 50)
    both = host.of("uncond", "cond", conditional=1)

    def stacked(x: Tensor, s: float) -> Tensor:
        w, v = x.chunk(2)
        return torch.cat([uncond(w, s), cond(v, s)])

    def guided(x: Tensor, s: float, _step: int, is_last: bool) -> Tensor:
        if how == "stacked":
            w, v = both.ask(stacked, torch.cat([x, x]), s, is_last).chunk(2)
        elif how == "condition first":
            v = host.ask(cond, x, s, is_last)
            w = host.of("uncond", conditional=None).ask(uncond, x, s, is_last)
        else:
            w = host.of("uncond", conditional=None).ask(uncond, x, s, is_last)
            v = host.ask(cond, x, s, is_last)
        return w + GUIDANCE * (v - w)

    return cache, euler(guided, noise(seed, shape), levels(steps, shift))


@pytest.mark.parametrize("how", ["stacked", "condition first", "condition last"])
@pytest.mark.parametrize(
    ("steps", "first", "tau"), [(20, 3, 0.1), (20, 7, 0.3), (31, 1, 0.2), (50, 10, 0.05), (9, 4, 0.2)]
)
def test_every_decision_and_output_is_the_published_rules(how: str, steps: int, first: int, tau: float) -> None:
    for seed in range(3):
        said, path = plain_run(tau, first, steps, seed)
        cache, ours = cached_run(StepCacheSettings("easycache", tau, first, max_skips=None), steps, seed, how)
        assert outcomes(cache.decisions) == said
        assert "r" in said and "C" in said[first:-1]
        torch.testing.assert_close(ours, path, rtol=2e-6, atol=2e-6)


def test_a_batch_of_two_is_judged_by_its_mean_as_published() -> None:
    shape = (2, *SHAPE[1:])
    said, path = plain_run(0.15, 3, 20, 4, shape=shape)
    cache, ours = cached_run(StepCacheSettings("easycache", 0.15, 3, max_skips=None), 20, 4, "stacked", shape)
    assert outcomes(cache.decisions) == said and "r" in said
    torch.testing.assert_close(ours, path, rtol=2e-6, atol=2e-6)


def test_state_offloaded_to_the_cpu_decides_and_answers_alike() -> None:
    runs = [
        cached_run(StepCacheSettings("easycache", 0.15, 3, max_skips=None, offload=offload), 20, 1, "stacked")
        for offload in (False, True)
    ]
    assert outcomes(runs[0][0].decisions) == outcomes(runs[1][0].decisions)
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1]))


def test_the_second_expert_begins_anew_where_the_published_code_answers_it_with_the_first_ones_output() -> None:
    # Published for Wan 2.2: one state for both experts, never reset.
    steps, switch, tau = 20, 10, 0.35
    schedule = levels(steps)
    high, low = smooth_model(0), smooth_model(7, scale=2.0)

    def expert(s: float) -> Model:
        return high if s > schedule[switch] else low

    plain = PlainEasyCache(tau, 3, steps)
    cache = RunStepCache(StepCacheSettings("easycache", tau, 3, max_skips=None))
    host = Host(cache, steps=steps)
    errors: dict[str, float] = {}

    def shared(x: Tensor, s: float, step: int, _is_last: bool) -> Tensor:
        v, _ = plain.step(lambda x, s: expert(s)(x, s), smooth_model(50), x, s)
        if step == switch:
            errors["shared"] = float((v - low(x, s)).norm() / low(x, s).norm())
        return v

    def ours(x: Tensor, s: float, step: int, is_last: bool) -> Tensor:
        name = "high" if expert(s) is high else "low"
        v = host.of("cond", conditional=0, expert=name).ask(expert(s), x, s, is_last)
        if step == switch:
            errors["ours"] = float((v - low(x, s)).norm() / low(x, s).norm())
        return v

    euler(shared, noise(0), schedule)
    euler(ours, noise(0), schedule)
    assert plain.said[switch] == "r", "the defect needs a skip at the switch"
    assert errors["shared"] > 0.5 and errors["ours"] == 0.0
    # Within one expert nothing differs; the new one is computed until it has a rate.
    assert outcomes(cache.decisions)[:switch] == plain.said[:switch]
    assert outcomes(cache.decisions)[switch : switch + 2] == "CC"
    assert cache.decisions[switch].reason is Reason.HISTORY


def test_of_video_and_audio_the_one_that_changes_more_decides() -> None:
    # Packed as hosts do: (B, 1, video + audio). The audio turns faster and faster, the video hardly.
    def model(x: Tensor, s: float) -> Tensor:
        video, audio = x.split([24, 8], dim=-1)
        return torch.cat([0.9 * video + 0.1 * s, 3.0 * audio * torch.cos(torch.tensor(9.0 * s))], dim=-1)

    shape = (1, 1, 32)
    settings = StepCacheSettings("easycache", 0.3, 3, max_skips=None)
    together, mixed, alone = (RunStepCache(settings) for _ in range(3))
    run(Host(together, steps=20, streams=(24, 8)), model, levels(20), shape=shape)
    run(Host(mixed, steps=20), model, levels(20), shape=shape)
    video = lambda x, s: model(torch.cat([x, torch.zeros(1, 1, 8)], dim=-1), s)[..., :24]  # noqa: E731
    run(Host(alone, steps=20), video, levels(20), shape=(1, 1, 24))
    assert alone.reused > together.reused, "the video alone would be skipped more often"
    assert mixed.reused != together.reused, "one mean over both hides the audio"


def test_threshold_0_hands_on_the_models_own_output_bit_for_bit() -> None:
    for rule in ("easycache", "forecast"):
        cache, ours = cached_run(StepCacheSettings(rule, 0.0, 1), 12, 2, "stacked")  # type: ignore[arg-type]
        _, plain = plain_run(0.0, 0, 12, 2)
        assert outcomes(cache.decisions) == "C" * 12
        assert all(torch.equal(a, b) for a, b in zip(ours, plain))
        # And the errors are measured all the same.
        assert all(d.error is not None and d.error > 0 for d in cache.decisions[1:])


@pytest.mark.parametrize(
    ("model", "tau", "first"),
    [("wan2.1", 0.05, 10), ("wan2.2-5b", 0.05, 7), ("wan2.2-a14b", 0.06, 7), ("hunyuanvideo", 0.025, 5)],
)
def test_published_defaults_are_for_50_steps_as_a_count_or_as_a_share(
    model: PublishedModel, tau: float, first: int
) -> None:
    settings = StepCacheSettings.published(model)
    assert (settings.rule, settings.threshold, settings.max_skips) == ("easycache", tau, None)
    assert [settings.first_of(steps) for steps in (20, 50)] == [first, first]
    shared = StepCacheSettings.published(model, as_share=True)
    assert shared.first_of(50) == first
    assert shared.first_of(100) == 2 * first
    assert first / 50 * 20 <= shared.first_of(20) < first / 50 * 20 + 1


def test_a_few_steps_have_nothing_to_gain() -> None:
    for settings in (StepCacheSettings("easycache", 0.05, 1), StepCacheSettings("forecast")):
        said = nothing_to_gain(settings, 4)
        assert said is not None and said.startswith("nothing to gain at 4 steps")
        assert nothing_to_gain(settings, 20) is None
    assert nothing_to_gain(StepCacheSettings.published("wan2.1"), 12) is not None
    assert nothing_to_gain(StepCacheSettings.published("wan2.1", as_share=True), 12) is None
    assert nothing_to_gain(StepCacheSettings(), 4) is None
