"""What is forecast, measured: every sampler runs with every quantity; a cell of the page is a mean over all seeds."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

pytest.importorskip("diffusers")

from benchmarks.frontier import quantities
from benchmarks.frontier.noisy import NoisySolver
from benchmarks.frontier.quantities import CASES, SEEDS, Case, measure, page, run
from benchmarks.quality.raw import WHOLE, Raw
from demo.checkpoint import new_model
from draftattention.draftattn_core import TokenGrid
from draftattention.draftattn_core.run.step_cache import StepCacheSettings
from draftattention.draftattn_core.run.step_cache.settings import QUANTITIES, Quantity

GRID = TokenGrid(2, 4, 6)
STEPS = 8


@pytest.mark.parametrize("solver", ["euler", *get_args(NoisySolver)])
def test_the_quantity_asked_for_is_the_one_that_is_forecast_whatever_the_sampler(solver: str) -> None:
    """The pack itself takes x0 where it knows that noise is added; a comparison must not."""
    torch.manual_seed(0)
    model, case = new_model(), Case(solver, STEPS, 5.0, ())
    dense, computed = run(model, case, StepCacheSettings(), GRID, 0)
    assert computed == STEPS

    def skipped(quantity: Quantity) -> torch.Tensor:
        settings = StepCacheSettings("spread", share=0.6, quantity=quantity, max_forecast_error=float("inf"))
        frames, computed = run(model, case, settings, GRID, 0)
        assert computed == len(settings.planned_steps(STEPS)) < STEPS
        return frames

    found = [dense, *map(skipped, QUANTITIES)]
    assert all(not torch.equal(a, b) for at, a in enumerate(found) for b in found[:at])
    assert torch.equal(run(model, case, StepCacheSettings(), GRID, 0)[0], dense), "noise is drawn from the seed"


def test_a_run_of_the_bench_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantities, "GRID", GRID)
    monkeypatch.setattr(quantities, "CASES", (Case("euler_ancestral", 4, 5.0, (0.4,), (0.5,)),))
    raw, model = Raw(tmp_path / "raw.jsonl", {}), new_model()
    measure(model, raw, WHOLE)
    found = raw.path.read_text(encoding="utf-8")
    assert len(found.splitlines()) == len(SEEDS) * len(QUANTITIES) * 2
    measure(model, raw, WHOLE)
    assert raw.path.read_text(encoding="utf-8") == found
    assert page(raw.records()).count("dB (") == len(QUANTITIES) * 2


def test_a_cell_is_the_mean_over_the_seeds_and_empty_until_all_are_there() -> None:
    case = CASES[0]
    skip = case.skips("difference")[0]

    def record(seed: int, computed: int, psnr: float) -> dict[str, object]:
        scores = {"psnr_db": psnr, "ssim": 0.9, "flicker": 0.0}
        return {"unit": quantities._unit(case, seed, skip), "computed": computed, "scores": scores}

    one = record(SEEDS[0], 8, 30.0)
    assert "dB" not in page([one])
    assert "9: 32.0 dB (0.900)" in page([one, record(SEEDS[1], 10, 34.0)])


def test_every_demanded_condition_has_a_case() -> None:
    """Samplers that add noise, a high shift, few steps."""
    assert {*get_args(NoisySolver)} <= {case.solver for case in CASES}
    assert max(case.shift for case in CASES) > 8.0 and min(case.steps for case in CASES) <= 8
