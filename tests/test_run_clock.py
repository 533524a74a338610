"""Steps, progress and run boundaries from timesteps alone."""

from __future__ import annotations

import pytest
import torch

from draftattention.draftattn_core.hosts.diffusers.clock import RunClock


class Scheduler:
    """The part of a diffusers scheduler that the clock reads."""

    def __init__(self, *timesteps: float) -> None:
        self.set_timesteps(*timesteps)

    def set_timesteps(self, *timesteps: float) -> None:
        self.timesteps = torch.tensor(timesteps)
        self.step_index: int | None = None

    def step(self) -> None:
        self.step_index = (self.step_index or 0) + 1


def read(clock: RunClock, *timesteps: float) -> list[tuple[int, float, bool]]:
    ticks = [clock.tick(torch.tensor([timestep])) for timestep in timesteps]
    return [(tick.step, tick.progress, tick.new_run) for tick in ticks]


def test_progress_is_the_place_in_the_list():
    clock = RunClock(timesteps=[1000, 900, 700, 400])
    assert read(clock, 1000, 1000, 900, 700, 400) == [
        (0, 0.0, True),
        (0, 0.0, False),
        (1, 0.25, False),
        (2, 0.5, False),
        (3, 0.75, False),
    ]


def test_a_run_that_enters_in_the_middle_keeps_its_place():
    assert read(RunClock(timesteps=[1000, 900, 700, 400]), 700, 400) == [(0, 0.5, True), (1, 0.75, False)]


def test_progress_from_the_number_of_steps_counts_noise_levels():
    assert read(RunClock(steps=2), 990, 990, 600, 600) == [
        (0, 0.0, True),
        (0, 0.0, False),
        (1, 0.5, False),
        (1, 0.5, False),
    ]


def test_progress_without_any_length_is_the_noise_level():
    clock = RunClock()
    assert not clock.knows_length
    assert [progress for _, progress, _ in read(clock, 1000, 750, 0)] == [0.0, 0.25, 1.0]


@pytest.mark.parametrize("clock", [RunClock(), RunClock(steps=2), RunClock(timesteps=[900, 500])])
def test_a_timestep_that_goes_up_again_begins_a_run(clock):
    assert [(step, new) for step, _, new in read(clock, 900, 500, 900, 500)] == [
        (0, True),
        (1, False),
        (0, True),
        (1, False),
    ]


def test_set_timesteps_begins_a_run_even_of_one_step():
    scheduler = Scheduler(1000)
    clock = RunClock(scheduler)
    assert [new for *_, new in read(clock, 1000, 1000)] == [True, False]
    scheduler.set_timesteps(1000)
    assert read(clock, 1000) == [(0, 0.0, True)]
    scheduler.set_timesteps(1000, 500)
    assert read(clock, 1000, 500) == [(0, 0.0, True), (1, 0.5, False)]


def test_set_timesteps_begins_a_run_even_further_on_than_the_last_one_came():
    # A run that was cut short, and then one from a video.
    scheduler = Scheduler(1000, 900, 700, 400)
    clock = RunClock(scheduler)
    read(clock, 1000)
    scheduler.step()
    read(clock, 900)
    scheduler.set_timesteps(1000, 900, 700, 400)
    assert read(clock, 700, 700, 400) == [(0, 0.5, True), (0, 0.5, False), (1, 0.75, False)]


def test_a_second_expert_that_comes_in_further_on_than_it_last_came_begins_a_run():
    # Its last run was cut short, and the first expert has done the steps since.
    scheduler = Scheduler(1000, 900, 800, 700, 600, 500)
    clock = RunClock(scheduler)
    for _ in range(2):
        scheduler.step()
    read(clock, 800)
    scheduler.set_timesteps(1000, 900, 800, 700, 600, 500)
    for _ in range(4):
        scheduler.step()
    assert read(clock, 600, 500) == [(0, pytest.approx(4 / 6), True), (1, pytest.approx(5 / 6), False)]


def test_moving_a_schedulers_timesteps_within_a_run_is_no_new_run():
    scheduler = Scheduler(1000, 500)
    clock = RunClock(scheduler)
    read(clock, 1000)
    scheduler.step()
    scheduler.timesteps = scheduler.timesteps.clone()
    assert read(clock, 500) == [(1, 0.5, False)]


def test_restart_begins_a_run_at_the_same_timestep():
    clock = RunClock(steps=1)
    read(clock, 1000)
    clock.restart()
    assert read(clock, 1000) == [(0, 0.0, True)]


def test_timesteps_rounded_to_bfloat16_are_told_apart_by_the_scheduler():
    levels = (1000.0, 997.0, 994.0, 991.0, 988.0)
    assert len({torch.tensor(level).bfloat16().item() for level in levels}) < len(levels)
    scheduler = Scheduler(*levels)
    clock = RunClock(scheduler)
    ticks = []
    for level in levels:
        for _ in range(2):
            ticks.append(clock.tick(torch.tensor([level], dtype=torch.bfloat16)))
        scheduler.step()
    assert [tick.step for tick in ticks] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [tick.new_run for tick in ticks] == [True] + [False] * 9


def test_a_second_order_sampler_repeats_noise_levels_but_not_progress():
    levels = (1000.0, 900.0, 900.0, 500.0, 500.0)
    scheduler = Scheduler(*levels)
    clock = RunClock(scheduler)
    steps, progress = [], []
    for level in levels:
        tick = clock.tick(torch.tensor([level]))
        steps.append(tick.step)
        progress.append(tick.progress)
        scheduler.step()
    assert steps == [0, 1, 1, 2, 2]
    assert progress == [0.0, 0.2, 0.4, 0.6, 0.8]


def test_a_timestep_per_token_counts_with_the_noisiest():
    clock = RunClock(timesteps=[1000, 600])
    assert clock.tick(torch.tensor([[0.0, 0.0, 600.0, 600.0]])).progress == 0.5


def test_a_timestep_that_is_not_listed_falls_back_to_the_noise_level():
    tick = RunClock(timesteps=[1000, 900]).tick(torch.tensor([0.4]))
    assert (tick.listed, tick.progress) == (False, pytest.approx(0.9996))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 4, "timesteps": [1.0]}, "pass one of"),
        ({"steps": 0}, "at least one step"),
        ({"timesteps": []}, "empty"),
        ({"scheduler": object()}, "no timesteps"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RunClock(**arguments)
