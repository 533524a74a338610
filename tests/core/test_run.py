"""A run: sparse where the plan allows, dense with a counted reason everywhere else, never an exception."""

from __future__ import annotations

import json
import threading
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from draftattention.draftattn_core.attention import Attention, attend
from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import DEFAULT_TILES
from draftattention.draftattn_core.method.policy import METHODS, TAILS, Policy
from draftattention.draftattn_core.run import sparse_calls
from draftattention.draftattn_core.run.events import CallDone
from draftattention.draftattn_core.run.failures import MAX_ERRORS
from draftattention.draftattn_core.run.probe import best_tails, gains_of, probe_errors
from draftattention.draftattn_core.run.report import DenseReason, Position
from draftattention.draftattn_core.run.run import Run
from draftattention.draftattn_core.run.schedule import Schedule, constant
from draftattention.draftattn_core.run.settings import Settings
from tests.core.cases import PerHead, relative, smooth_qkv

SETTINGS = Settings(schedule=constant(0.3), auto_gain=False, q_block=16, k_block=8, tile=DEFAULT_TILES[16])
GRID = TokenGrid(3, 5, 7)
LAYOUT = SETTINGS.layout(GRID, 2, 3)
PAIRS = 2 * 110.0**2


def call(
    run: Run,
    qkv: tuple[Tensor, Tensor, Tensor] | None = None,
    *,
    step: int = 0,
    progress: float = 0.5,
    layer: int = 1,
    **changes: Any,
) -> Tensor:
    """One call of a layer; the host's dense attention is SDPA, its output form (B, L, H * D)."""
    q, k, v = smooth_qkv(LAYOUT, dtype=torch.float32) if qkv is None else qkv

    def host_form(out: Tensor) -> Tensor:
        return out.transpose(1, 2).flatten(2)

    arguments: dict[str, Any] = {
        "grid": GRID,
        "position": Position(step, progress, layer, 4),
        "dense": lambda: host_form(F.scaled_dot_product_attention(q, k, v)),
        "extra_before": 2,
        "extra_after": 3,
        "from_core": host_form,
    }
    return run.calls.attention(q, k, v, **(arguments | changes))


def dense_output() -> Tensor:
    q, k, v = smooth_qkv(LAYOUT, dtype=torch.float32)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": PerHead(((0.0, 0.3),), weights=((1.0,) * 3,) * 4)}, "3 densities for 2 heads"),
        ({"policy": Policy(tail=("none", "mean", "mean"))}, "3 tails for 2 heads"),
        ({"policy": Policy(tail_gain=(0.1, 0.1, 0.1, 0.1))}, "4 tail gains for 2 heads"),
    ],
)
def test_a_profile_of_another_model_is_refused_in_one_sentence(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Before any work is done, with a reason of its own; it is no error, and nothing stands aside."""
    monkeypatch.setattr(
        "draftattention.draftattn_core.method.rules.call.make_draft",
        lambda *given, **named: pytest.fail("work was done"),
    )
    run = Run(replace(SETTINGS, **changes))
    for layer in range(MAX_ERRORS + 1):
        assert torch.equal(call(run, layer=layer % 4), dense_output())
    assert run.report.calls_dense() == {str(DenseReason.HEADS): MAX_ERRORS + 1}
    assert not run.failures.stood_aside
    assert len(run.report.notes) == len(caplog.records) == 1
    assert message in run.report.notes[0] and "profile" in run.report.notes[0]


def test_a_sparse_call_is_the_core_call_in_the_hosts_form() -> None:
    run = Run(SETTINGS)
    q, k, v = smooth_qkv(LAYOUT, dtype=torch.float32)
    expected = attend(q, k, v, LAYOUT, SETTINGS.policy.with_density(0.3))
    assert torch.equal(call(run), expected.out.transpose(1, 2).flatten(2))
    assert run.report.calls_sparse == 1
    assert run.report.calls_dense() == {}
    assert run.report.executed_density() == pytest.approx(float(expected.density()), rel=1e-6)
    assert len(run.calls.cache) == 1


@pytest.mark.parametrize(
    ("settings", "changes", "reason"),
    [
        ({"schedule": constant(0.3, warmup=0.6)}, {}, DenseReason.SCHEDULE),
        ({"schedule": Schedule(((0.0, 0.3),), dense_layers=(1,))}, {}, DenseReason.DENSE_LAYER),
        ({"min_tokens": 106}, {}, DenseReason.FEW_TOKENS),
        ({}, {"extra_after": 4}, DenseReason.TOKENS),
        ({}, {"key_bias": torch.zeros(1, 2)}, DenseReason.ERROR),
    ],
)
def test_every_dense_call_has_its_reason(
    settings: dict[str, Any], changes: dict[str, Any], reason: DenseReason
) -> None:
    run = Run(replace(SETTINGS, **settings))
    assert torch.equal(call(run, **changes), dense_output())
    assert run.report.calls_dense() == {str(reason): 1}
    assert run.report.executed_density() == 1.0


def test_a_call_that_records_gradients_runs_dense() -> None:
    run = Run(SETTINGS)
    q, k, v = (x.requires_grad_() for x in smooth_qkv(LAYOUT, dtype=torch.float32))
    assert call(run, (q, k, v)).requires_grad
    assert run.report.calls_dense() == {str(DenseReason.BACKEND): 1}
    assert "no gradients" in run.report.notes[0]


def test_executed_density_of_a_run_by_hand() -> None:
    run = Run(replace(SETTINGS, schedule=constant(0.3, warmup=0.5)))
    densities = []
    run.events.subscribe(CallDone, lambda event: densities.append(float(event.result.density())))
    for step in range(4):
        for layer in range(3):
            call(run, step=step, progress=step / 4, layer=layer)
    run.calls.dense(dense_output, DenseReason.CROSS_ATTENTION)
    report = run.finish()
    assert report.calls_dense() == {"schedule": 6, "not self-attention": 1}
    assert report.calls_sparse == len(densities) == 6
    assert report.executed_density() == pytest.approx((6 + sum(densities)) / 12, rel=1e-6)
    assert [cell is not None for row in report.density_map() for cell in row] == [True] * 12
    assert report.density_map()[1] == [1.0] * 3
    assert len(run.calls.cache) == 0
    json.dumps(report.to_dict(), allow_nan=False)


def failing(*_: object, **__: object) -> Attention:
    raise RuntimeError("no such kernel")


def test_an_error_runs_dense_and_three_stand_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(SETTINGS)
    monkeypatch.setattr(sparse_calls, "attend", failing)
    for _ in range(MAX_ERRORS + 2):
        assert torch.equal(call(run), dense_output())
    assert run.report.calls_dense() == {str(DenseReason.ERROR): 3, str(DenseReason.STOOD_ASIDE): 2}
    assert run.failures.stood_aside
    assert any("no such kernel" in note for note in run.report.notes)
    assert any("stands aside" in note for note in run.report.notes)


def test_an_error_in_the_hosts_own_form_or_in_an_observer_does_not_stop_the_run() -> None:
    run = Run(SETTINGS)
    assert torch.equal(call(run, from_core=failing), dense_output())

    def observer(event: CallDone) -> None:
        raise OSError("disk full")

    run.events.subscribe(CallDone, observer)
    call(run)
    assert run.report.calls_sparse == 1 and not run.events.wanted(CallDone)
    assert any("disk full" in note for note in run.report.notes)


def test_out_of_memory_runs_dense_and_does_not_count_as_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: object, **__: object) -> Attention:
        raise torch.OutOfMemoryError("tried to allocate")

    run = Run(SETTINGS)
    monkeypatch.setattr(sparse_calls, "attend", too_large)
    for _ in range(MAX_ERRORS + 1):
        assert torch.equal(call(run), dense_output())
    assert run.report.calls_dense() == {str(DenseReason.OUT_OF_MEMORY): MAX_ERRORS + 1}
    assert len(run.report.notes) == 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_what_a_failed_call_had_made_is_freed_before_the_dense_one(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    made: list[weakref.ref[Tensor]] = []

    def half_done(*_: object, **__: object) -> Attention:
        scores = torch.zeros(1000)
        made.append(weakref.ref(scores))
        raise error("tried to allocate more")

    alive: list[bool] = []

    def dense() -> Tensor:
        alive.append(made[0]() is not None)
        return dense_output()

    monkeypatch.setattr(sparse_calls, "attend", half_done)
    assert torch.equal(call(Run(SETTINGS), dense=dense), dense_output())
    assert alive == [False]


def test_a_refusing_backend_runs_dense_with_its_reason() -> None:
    run = Run(SETTINGS)
    q = torch.zeros(1, 2, LAYOUT.tokens, 16, dtype=torch.int32)
    out = call(run, (q, q, q), dense=dense_output)
    assert torch.equal(out, dense_output())
    assert run.report.calls_dense() == {str(DenseReason.BACKEND): 1}
    assert "int32" in run.report.notes[0]


def test_a_layer_is_sparse_only_after_one_finite_output() -> None:
    run = Run(SETTINGS)
    q, k, v = smooth_qkv(LAYOUT, dtype=torch.float32)
    bad = v.clone()
    bad[0, 0, 7, 3] = torch.inf
    call(run, (q, k, bad), layer=1)
    call(run, (q, k, bad), layer=1)
    call(run, (q, k, bad), layer=2)
    assert run.report.calls_dense() == {str(DenseReason.NON_FINITE): 3}
    assert "layer 1" in run.report.notes[0]
    call(run, layer=1)
    assert run.report.calls_sparse == 1


def test_steps_are_noise_levels_in_order_of_appearance() -> None:
    run = Run(SETTINGS)
    assert [run.step_of(level) for level in (1.0, 1.0, 0.7, 0.3, 0.7)] == [0, 0, 1, 2, 1]
    assert Run(SETTINGS).step_of(0.7) == 0


def test_the_probe_chooses_each_heads_tail_once_per_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(replace(SETTINGS, auto_tail=True))
    calls: list[object] = []

    def counted(*arguments: Any, **options: Any) -> Attention:
        calls.append(arguments)
        return attend(*arguments, **options)

    monkeypatch.setattr(sparse_calls, "attend", counted)
    q, k, v = smooth_qkv(LAYOUT, dtype=torch.float32)
    first = attend(q, k, v, LAYOUT, SETTINGS.policy.with_density(0.3))
    names = best_tails(probe_errors(first.request, seed=1))
    out = call(run)
    assert run.report.tails == {1: names}
    assert set(run.report.tail_errors[1]) == set(TAILS)
    chosen = attend(q, k, v, LAYOUT, replace(SETTINGS.policy, density=0.3, tail=names))
    assert torch.equal(out, chosen.out.transpose(1, 2).flatten(2))
    assert relative(chosen.out, attend_reference(chosen.request)) < 1e-6
    again = len(calls)
    assert torch.equal(call(run), out)
    assert len(calls) == again + 1
    call(run, layer=2)
    assert set(run.report.tails) == {1, 2}


def test_a_call_whose_tails_were_already_the_best_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(replace(SETTINGS, auto_tail=True))
    calls: list[object] = []

    def counted(*arguments: Any, **options: Any) -> Attention:
        calls.append(arguments)
        return attend(*arguments, **options)

    monkeypatch.setattr(sparse_calls, "attend", counted)
    monkeypatch.setattr("draftattention.draftattn_core.run.probe.best_tails", lambda probe: (Policy().tail,) * 2)
    call(run)
    assert len(calls) == 1


@pytest.mark.parametrize("auto_tail", [False, True])
def test_the_probe_fits_each_heads_tail_gain_once_per_layer(auto_tail: bool) -> None:
    run = Run(replace(SETTINGS, auto_tail=auto_tail, auto_gain=True))
    q, k, v = smooth_qkv(LAYOUT, dtype=torch.float32)
    qkv = (3 * q, k, v)
    first = attend(*qkv, LAYOUT, SETTINGS.policy.with_density(0.3))
    tails = TAILS if auto_tail else ("linear1",)
    probe = probe_errors(first.request, tails=tails, seed=1, gains=True)
    names = best_tails(probe)
    gains = gains_of(probe, names)
    assert any(gains)
    out = call(run, qkv)
    assert run.report.tails == {1: names} and run.report.tail_gains == {1: gains}
    assert set(run.report.tail_errors[1]) == set(tails)
    chosen = attend(*qkv, LAYOUT, replace(SETTINGS.policy, density=0.3, tail=names, tail_gain=gains))
    assert torch.equal(out, chosen.out.transpose(1, 2).flatten(2))
    assert torch.equal(call(run, qkv), out)


def test_without_a_tail_there_is_nothing_to_probe() -> None:
    run = Run(replace(SETTINGS, policy=replace(SETTINGS.policy, tail="none"), auto_gain=True))
    call(run)
    assert not run.report.tails and not run.report.tail_gains


def test_each_head_follows_its_own_density() -> None:
    weights = ((1.0, 1.0), (0.2, 3.0))
    run = Run(replace(SETTINGS, schedule=PerHead(((0.0, 0.3),), weights=weights)))
    kept: list[Tensor] = []
    run.events.subscribe(CallDone, lambda event: kept.append(event.result.computed_pairs()))
    call(run, layer=1)
    assert kept[0][0, 0] < 0.5 * kept[0][0, 1]


def test_threads_share_a_run() -> None:
    run = Run(replace(SETTINGS, auto_tail=True))
    outputs: list[Tensor] = []
    work = [
        threading.Thread(target=lambda n=n: outputs.extend(call(run, layer=(n + i) % 3) for i in range(6)))
        for n in range(4)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert run.report.calls_sparse == len(outputs) == 24
    assert all(relative(out, outputs[0]) < 0.2 for out in outputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile": (1, 8, 8)}, "choose a tile"),
        ({"order": "spiral"}, "unknown order"),
        ({"backend": "fast"}, "unknown backend"),
    ],
)
def test_settings_are_checked_when_made(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"density": 1.5}, "density is 1 - sparsity"),
        ({"density": (0.2, -0.1)}, "between 0 and 1"),
        ({"method": "best"}, "unknown selection method"),
        ({"tail": "cubic"}, "unknown tail"),
        ({"tail": ("mean", "cubic")}, "unknown tail"),
        ({"floor": 2.0}, "floor"),
        ({"top_p": -1.0}, "top_p"),
    ],
)
def test_policies_are_checked_when_made(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(**changes)


# CalibAtt needs a calibration: see test_calibatt_recorder.
@pytest.mark.parametrize("method", [name for name in METHODS if name != "calibatt"])
def test_every_selection_rule_serves_a_run(method: str) -> None:
    settings = replace(SETTINGS, policy=Policy(method=method), auto_gain=True)
    if method == "svg":
        settings = replace(settings, order="raster", tile=None)
    run = Run(settings)
    for step in range(3):
        assert torch.isfinite(call(run, step=step, progress=step / 3)).all()
    assert run.report.calls_sparse == 3 and not run.report.notes, run.report.notes


def test_a_rules_state_lives_as_long_as_the_run_for_each_layer_and_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Any, Any]] = []

    def spy(*arguments: Any, position: Position, state: dict[str, Any], **options: Any) -> Attention:
        given.append((position, state))
        return attend(*arguments, position=position, state=state, **options)

    monkeypatch.setattr(sparse_calls, "attend", spy)
    run = Run(SETTINGS)
    for step in range(2):
        for layer in (0, 1):
            for branch in ("cond", "uncond"):
                call(run, step=step, position=Position(step, 0.5, layer, 4, branch))
    assert [position.step for position, _ in given] == [0] * 4 + [1] * 4
    assert all(first is again for (_, first), (_, again) in zip(given[:4], given[4:]))
    assert len({id(state) for _, state in given}) == 4


def test_a_rule_that_gives_heads_an_order_of_their_own_is_not_probed() -> None:
    """What it ran on is the reordered call: redone with other gains it would be put in order twice."""
    run = Run(replace(SETTINGS, policy=Policy(method="svg"), auto_gain=True, order="raster", tile=None))
    call(run)
    assert run.report.calls_sparse == 1 and not run.report.tail_gains
    probed = Run(replace(SETTINGS, policy=Policy(method="row"), auto_gain=True))
    call(probed)
    assert probed.report.tail_gains
