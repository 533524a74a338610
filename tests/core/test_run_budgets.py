"""Budgets in a run: the schedule's density goes where the measured error is, and the report says what came of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import DEFAULT_TILES
from draftattention.draftattn_core.method.policy import Policy
from draftattention.draftattn_core.run.events import CallDone
from draftattention.draftattn_core.run.fingerprint import ModelName
from draftattention.draftattn_core.run.profile import Profile
from draftattention.draftattn_core.run.report import DenseReason, Position
from draftattention.draftattn_core.run.run import Run
from draftattention.draftattn_core.run.schedule import constant
from draftattention.draftattn_core.run.settings import Settings
from tests.core.cases import relative, smooth_qkv

LAYERS, HEADS = 3, 4
GRID = TokenGrid(4, 9, 10)
SETTINGS = Settings(schedule=constant(0.3), q_block=16, k_block=8, tile=DEFAULT_TILES[16], budgets="error")
LAYOUT = SETTINGS.layout(GRID, 2, 3)
NAME = ModelName("wan", weights="0123456789abcdef")


def tensors(layer: int, heads: int = HEADS) -> tuple[Tensor, Tensor, Tensor]:
    """Heads and layers of very unequal sharpness."""
    q, k, v = smooth_qkv(LAYOUT, heads=heads, dtype=torch.float32)
    sharp = torch.logspace(-1, 0.9, heads).view(1, -1, 1, 1) * (1.0 + layer)
    return q * sharp, k, v * (1.0 + 2 * layer)


def step(run: Run, index: int, steps: int = 10, *, heads: int = HEADS, layers: int = LAYERS) -> list[Tensor]:
    """One evaluation: every layer once; outputs (B, H, L, D)."""
    places = [Position(index, index / steps, layer, layers) for layer in range(layers)]
    return [served(run, place, tensors(place.layer, heads)) for place in places]


def served(run: Run, position: Position, qkv: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    q, k, v = qkv
    return run.calls.attention(
        q, k, v, grid=GRID, position=position, dense=lambda: F.scaled_dot_product_attention(q, k, v),
        extra_before=2, extra_after=3,
    )  # fmt: skip


def error(out: list[Tensor]) -> float:
    """Relative L2 error of the video tokens of all layers together."""
    video = slice(LAYOUT.extra_before, LAYOUT.extra_before + GRID.tokens)
    exact = [F.scaled_dot_product_attention(*tensors(layer)) for layer in range(len(out))]
    off = sum((a - b)[:, :, video].square().sum() for a, b in zip(out, exact, strict=True))
    return float((off / sum(b[:, :, video].square().sum() for b in exact)).sqrt())


def policies(run: Run) -> list[Policy | DenseReason]:
    return [run.calls.plan.at(Position(1, 0.1, layer, LAYERS), HEADS) for layer in range(LAYERS)]


def work(run: Run, index: int) -> float:
    calls = [call for call in run.report.calls if call.position is not None and call.position.step == index]
    return sum(1.0 if c.density is None else float(c.density) + c.tail_work for c in calls) / len(calls)


def a_profile(**changes: Any) -> Profile:
    run = Run(replace(SETTINGS, record=True, **changes), model=NAME)
    for index in (0, 3, 8):
        step(run, index)
    made = run.profile("a fox")
    assert made is not None
    return made


def test_the_second_step_has_less_error_at_no_more_work() -> None:
    run = Run(SETTINGS)
    even = error(step(run, 0))
    spent = error(step(run, 1))
    assert spent < 0.8 * even
    assert work(run, 1) <= work(run, 0) * 1.02
    densities = [p.density for p in policies(run) if isinstance(p, Policy)]
    assert all(isinstance(d, tuple) and max(d) > min(d) for d in densities)
    told = run.report.budgets[0]
    assert told.source == "this run" and told.before == pytest.approx(0.3)
    assert told.uniform is not None and told.promised < told.uniform
    assert told.promised == pytest.approx(spent, rel=0.35) and told.uniform == pytest.approx(even, rel=0.35)


def test_the_same_run_twice_is_the_same() -> None:
    outs = []
    for _ in range(2):
        run = Run(SETTINGS)
        step(run, 0)
        outs.append(step(run, 1))
    assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True))


def test_off_is_as_before() -> None:
    off, plain = Run(replace(SETTINGS, budgets="off")), Run(replace(SETTINGS, budgets="off"))
    assert off.calls.spending is None
    assert all(torch.equal(a, b) for a, b in zip(step(off, 0), step(plain, 0), strict=True))


def test_every_layer_is_measured_once_per_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    from draftattention.draftattn_core.run import sparse_calls, spending

    seen, real = [], spending.error_curves
    monkeypatch.setattr(spending, "error_curves", lambda *a, **k: (seen.append(k["seed"]), real(*a, **k))[1])
    monkeypatch.setattr(sparse_calls, "probe_tails", lambda *a, **k: pytest.fail("a second exact attention"))
    run = Run(SETTINGS)
    for index in (0, 0, 1, 3, 4, 8, 9):  # buckets change between 1 and 3 and between 4 and 8
        step(run, index)
    assert sorted(seen) == sorted(list(range(LAYERS)) * 3)
    assert [row.measured is not None for row in run.report.budgets] == [True, True, False]


def test_max_error_is_kept_by_every_layer_from_the_first_call_on() -> None:
    run = Run(replace(SETTINGS, budgets="off", max_error=0.05))
    for index in (0, 1):
        for layer, out in enumerate(step(run, index)):
            exact = F.scaled_dot_product_attention(*tensors(layer))
            assert relative(out, exact) < 0.05, (index, layer)
    told = run.report.budgets[0]
    assert told.worst_layer <= 0.05 * 1.0001 and set(told.after) == {0, 1, 2}
    loose = Run(replace(SETTINGS, budgets="off", max_error=0.15))
    step(loose, 0), step(loose, 1)
    assert work(loose, 1) < work(run, 1) - 0.08


def test_a_layer_that_pays_for_it_becomes_dense_with_a_reason_of_its_own() -> None:
    run = Run(replace(SETTINGS, max_error=0.0005))
    step(run, 0), step(run, 1)
    assert run.report.calls_dense().get(str(DenseReason.BUDGET), 0) >= 1


def test_a_profile_gives_densities_tails_and_gains_from_the_first_step_on() -> None:
    made = a_profile()
    run = Run(replace(SETTINGS, budgets="off", profile=made), model=NAME)
    first = error(step(run, 0))
    online = Run(SETTINGS)
    even = error(step(online, 0))
    assert first < 0.8 * even
    step(run, 1)
    told = run.report.budgets[0]
    assert told.source == "profile" and told.measured == pytest.approx(told.promised, rel=0.5)
    assert "profile: made from 1 prompt" in run.report.notes
    assert [row.source for row in run.report.budgets] == ["profile"]


def test_a_profile_that_promises_something_else_gives_way_to_this_runs_measurements() -> None:
    made = a_profile()
    figures = made.experts["main"]
    wrong = replace(made, experts={"main": replace(figures, squared=figures.squared / 100)})
    run = Run(replace(SETTINGS, budgets="off", profile=wrong), model=NAME)
    step(run, 0), step(run, 1)
    assert [row.source for row in run.report.budgets] == ["profile", "this run"]
    assert any("follow this run's own measurements" in note for note in run.report.notes)


@pytest.mark.parametrize(
    ("settings", "model", "says"),
    [
        ({}, ModelName("hunyuan"), "made on wan (3 layers, 4 heads"),
        ({"k_block": 16}, NAME, "measured with k_block 8, not 16"),
        ({}, ModelName("wan", expert="low"), "nothing about the expert 'low'"),
    ],
)
def test_a_profile_of_something_else_is_refused_in_one_sentence(
    settings: dict[str, Any], model: ModelName, says: str
) -> None:
    plain = replace(SETTINGS, budgets="off", **settings)
    run, without = Run(replace(plain, profile=a_profile()), model=model), Run(plain)
    for index in (0, 1):
        assert all(torch.equal(a, b) for a, b in zip(step(run, index), step(without, index), strict=True))
    assert len(run.report.notes) == 1 and says in run.report.notes[0] and not run.report.budgets


def test_other_weights_are_noted() -> None:
    run = Run(replace(SETTINGS, budgets="off", profile=a_profile()), model=replace(NAME, weights="f" * 16))
    step(run, 0)
    assert any("other weights" in note for note in run.report.notes) and run.report.budgets


def test_unequal_heads_end_the_budgets_with_a_note_and_nothing_else() -> None:
    run = Run(SETTINGS)
    step(run, 0), step(run, 1)
    served(run, Position(2, 0.2, 0, LAYERS), tensors(0, HEADS + 2))
    step(run, 3)
    assert any("unequal heads" in note for note in run.report.notes)
    assert all(isinstance(p, Policy) and p.density == 0.3 for p in policies(run))
    assert run.report.calls_sparse == 10 and not run.failures.stood_aside


@pytest.mark.parametrize("settings", [{"policy": Policy(method="top_p")}, {"policy": Policy(method="radial")}])
def test_a_rule_without_curves_runs_as_it_is(settings: dict[str, Any]) -> None:
    run = Run(replace(SETTINGS, **settings))
    step(run, 0), step(run, 1)
    assert run.report.calls_sparse == 2 * LAYERS and not run.failures.stood_aside
    assert any(note.startswith("every head has the schedule's density") for note in run.report.notes)


def test_a_model_whose_layers_are_not_counted_runs_as_it_is() -> None:
    run = Run(SETTINGS)
    for index in (0, 1):
        served(run, Position(index, index / 10, 0), tensors(0))
    assert run.report.calls_sparse == 2 and any("layers" in note for note in run.report.notes)


def test_layers_the_schedule_keeps_dense_stay_dense() -> None:
    run = Run(replace(SETTINGS, schedule=SETTINGS.schedule.with_dense_layers((1,))))
    step(run, 0), step(run, 1)
    assert policies(run)[1] is DenseReason.DENSE_LAYER
    assert set(run.report.budgets[0].after) == {0, 2}


def test_a_part_of_the_heads_reads_its_part_of_the_budgets() -> None:
    whole, parts = Run(SETTINGS), Run(SETTINGS)
    gains: list[Any] = []
    for index in (0, 1):
        step(whole, index)
        for layer in range(LAYERS):
            for first in (0, 2):
                position = Position(index, index / 10, layer, LAYERS, first_head=first, all_heads=HEADS)
                served(parts, position, tuple(x[:, first : first + 2] for x in tensors(layer)))  # type: ignore[arg-type]
    for layer in range(LAYERS):
        wanted = whole.calls.plan.at(Position(1, 0.1, layer, LAYERS), HEADS)
        low = parts.calls.plan.at(Position(1, 0.1, layer, LAYERS, first_head=2, all_heads=HEADS), 2)
        assert isinstance(wanted, Policy) and isinstance(low, Policy)
        assert low.density == pytest.approx(wanted.density[2:], abs=1e-6)  # type: ignore[index]
        assert low.tail_gain == pytest.approx(wanted.tail_gain[2:], abs=1e-6)  # type: ignore[index]
        gains.append(low.tail_gain)
    assert len(set(gains)) > 1


def test_gains_are_those_of_each_heads_own_density() -> None:
    made = a_profile()
    run = Run(replace(SETTINGS, budgets="off", profile=made), model=NAME)
    step(run, 0)
    for layer in range(LAYERS):
        policy = run.calls.plan.at(Position(0, 0.0, layer, LAYERS), HEADS)
        assert isinstance(policy, Policy) and isinstance(policy.density, tuple) and isinstance(policy.tail_gain, tuple)
        for head, (density, gain) in enumerate(zip(policy.density, policy.tail_gain, strict=True)):
            known = made.experts["main"].gains[0, layer, head].double().numpy()
            assert gain == pytest.approx(float(np.interp(np.log(density), np.log(made.densities), known)), abs=1e-9)


def test_a_dense_run_is_recorded_without_a_change() -> None:
    run = Run(Settings(schedule=constant(1.0), q_block=16, k_block=8, tile=DEFAULT_TILES[16], record=True), model=NAME)
    for index in (0, 3, 8):
        for layer, out in enumerate(step(run, index)):
            assert torch.equal(out, F.scaled_dot_product_attention(*tensors(layer)))
    made = run.profile("a fox")
    assert made is not None and bool(made.experts["main"].measured.all()) and made.runs == 1
    assert made.grids == {str(GRID): 1} and run.report.calls_dense() == {"schedule": 9}
    assert not run.report.notes
    assert Run(SETTINGS).profile() is None


def test_a_sparse_run_without_budgets_is_recorded_without_a_change() -> None:
    plain = replace(SETTINGS, budgets="off")
    run, without = Run(replace(plain, record=True), model=NAME), Run(plain, model=NAME)
    for index in (0, 1):
        assert all(torch.equal(a, b) for a, b in zip(step(run, index), step(without, index), strict=True))
    made = run.profile()
    assert made is not None and bool(made.experts["main"].measured[0].all()) and not run.report.budgets


def test_calls_after_the_solve_do_not_wait_for_measurements() -> None:
    """A listener sees the densities of every call; the solver is asked once per mean and bucket."""
    run, seen = Run(SETTINGS), []
    run.events.subscribe(CallDone, lambda event: seen.append(event.result))
    for index in (0, 1, 1):
        step(run, index)
    assert run.calls.spending is not None and len(run.calls.spending._solved) == 1
    assert len(seen) == 3 * LAYERS


def test_the_report_is_plain_json() -> None:
    import json

    run = Run(SETTINGS)
    step(run, 0), step(run, 1)
    told = json.loads(json.dumps(run.report.to_dict()))["budgets"][0]
    assert told["before"] == pytest.approx(0.3) and set(told["after"]) == {"0", "1", "2"}
