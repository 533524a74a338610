"""The step cache beside devices: conditions of one evaluation on several at once, and what is kept on the CPU."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.run.step_cache import Decision, Reason, RunStepCache, StepCacheSettings

from .named_devices import on
from .step_cases import BOTH, Host, euler, levels, noise, outcomes, smooth_model

DEVICES = {"cond": torch.device("cuda", 0), "uncond": torch.device("cuda", 1)}
SEEDS = {"cond": 0, "uncond": 1}
SETTINGS = [StepCacheSettings("easycache", 0.25, 3, max_skips=2), StepCacheSettings("forecast", 0.25, 3, max_skips=2)]
SPREAD = StepCacheSettings("spread", first=3, share=0.5)
DECIDING = pytest.mark.parametrize("settings", SETTINGS, ids=[settings.rule for settings in SETTINGS])


def asked_of(cache: RunStepCache, key: str) -> Host:
    return Host(cache, keys=(key,), conditional=0 if key == "cond" else None, steps=20)


def guided_run(cache: RunStepCache, order: tuple[str, ...], split: bool, at_once: bool = False) -> Tensor:
    """An Euler run with guidance; each condition on a device of its own, all of an evaluation at once or in order."""
    hosts = {key: asked_of(cache, key) for key in order}
    meeting = threading.Barrier(len(order))

    def evaluate(key: str, x: Tensor, s: float, is_last: bool) -> Tensor:
        latent = on(DEVICES[key], x) if split else x
        if at_once:
            meeting.wait(10)
        return hosts[key].ask(smooth_model(SEEDS[key]), latent, s, is_last).to("cpu")

    with ThreadPoolExecutor(len(order)) as threads:

        def guided(x: Tensor, s: float, _step: int, is_last: bool) -> Tensor:
            run = threads.map if at_once else map
            found = dict(zip(order, run(lambda key: evaluate(key, x, s, is_last), order)))
            return 2 * found["cond"].as_subclass(Tensor) - found["uncond"].as_subclass(Tensor)

        return euler(guided, noise(0), levels(20))[-1]


def told(decisions: tuple[Decision, ...]) -> list[tuple[object, ...]]:
    return [(d.index, d.outcome, d.reason, d.estimate, d.branches_computed, d.branches_skipped) for d in decisions]


@DECIDING
@pytest.mark.parametrize("order", [("cond", "uncond"), ("uncond", "cond")], ids=" ".join)
def test_conditions_on_two_devices_follow_one_decision_from_the_conditions_state(
    settings: StepCacheSettings, order: tuple[str, ...]
) -> None:
    alone = RunStepCache(settings)
    expected = guided_run(alone, ("cond", "uncond"), split=False)
    assert 3 < outcomes(alone.decisions).count("C") < 18
    split = RunStepCache(settings)
    assert torch.equal(guided_run(split, order, split=True), expected)
    assert told(split.decisions) == told(alone.decisions)
    assert split.errors == 0


@DECIDING
def test_whichever_thread_comes_first_the_decisions_and_the_video_are_the_same(settings: StepCacheSettings) -> None:
    alone = RunStepCache(settings)
    expected = guided_run(alone, ("cond", "uncond"), split=False)
    for order in (("cond", "uncond"), ("uncond", "cond")) * 3:
        split = RunStepCache(settings)
        assert torch.equal(guided_run(split, order, split=True, at_once=True), expected)
        assert told(split.decisions) == told(alone.decisions)


@BOTH
def test_a_condition_that_moves_to_another_device_is_computed_there_and_begins_a_history(
    settings: StepCacheSettings,
) -> None:
    cache = RunStepCache(settings)
    host, model = Host(cache, steps=20), smooth_model(0)
    for i, (s, device) in enumerate(zip((0.9, 0.8, 0.7, 0.6, 0.5, 0.4), ("cuda:0",) * 3 + ("cuda:1",) * 3)):
        host.ask(model, on(device, noise(i)), s)
    assert host.calls == [0.9, 0.8, 0.6, 0.5]
    assert [decision.reason for decision in cache.decisions][2:] == [
        Reason.BELOW, Reason.LATENT, Reason.HISTORY, Reason.BELOW,
    ]  # fmt: skip


@DECIDING
def test_of_several_conditions_the_one_that_decided_goes_on_deciding(settings: StepCacheSettings) -> None:
    def decided(orders: tuple[tuple[str, str], ...]) -> list[float | None]:
        cache = RunStepCache(replace(settings, threshold=0.0))
        for i in range(8):
            for key in orders[i % len(orders)]:
                model = smooth_model(0 if key == "one" else 1)
                Host(cache, keys=(key,), steps=20).ask(model, noise(i), 0.9 - i / 20)
        return [decision.estimate for decision in cache.decisions]

    always, in_turns = decided((("one", "other"),)), decided((("one", "other"), ("other", "one")))
    assert in_turns == always and any(always)
    assert decided((("other", "one"),)) != always


@pytest.mark.parametrize("settings", [*SETTINGS, SPREAD], ids=["easycache", "forecast", "spread"])
def test_offload_keeps_latents_on_the_cpu_alone_and_answers_where_the_video_lies(settings: StepCacheSettings) -> None:
    def ended(offload: bool) -> tuple[Tensor, tuple[Decision, ...]]:
        cache = RunStepCache(replace(settings, offload=offload))
        schedule, there, most = levels(20), DEVICES["cond"], 0
        hosts = [replace(asked_of(cache, key), schedule=schedule) for key in SEEDS]

        def guided(x: Tensor, s: float, _step: int, is_last: bool) -> Tensor:
            nonlocal most
            found = [host.ask(smooth_model(seed), x, s, is_last) for seed, host in enumerate(hosts)]
            assert all(velocity.device == there for velocity in found)
            kept = [
                tensor
                for stream in cache._visits.streams.values()
                for branch in stream.branches.values()
                for tensor in branch.state.tensors()
            ]
            assert {tensor.device for tensor in kept} == {torch.device("cpu") if offload else there}
            most = max(most, len({tensor.data_ptr() for tensor in kept}))
            return 2 * found[0] - found[1]

        video = euler(guided, on(there, noise(0)), schedule)[-1]
        assert cache.errors == 0 and video.device == there
        # Two of either condition, and for easycache the latent before of the one that decides.
        assert most == (5 if settings.rule == "easycache" else 4)
        return video.as_subclass(Tensor), cache.decisions

    (left, decided), (offloaded, decided_too) = ended(offload=False), ended(offload=True)
    assert torch.equal(left, offloaded) and told(decided) == told(decided_too)
    assert 3 < outcomes(decided).count("C") < 18
    assert any(made.corrected for made in decided) == (settings.rule == "spread")
