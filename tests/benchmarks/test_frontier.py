"""The frontier's figures: work, fronts, what a composition may claim, and that a stopped run goes on."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from benchmarks.frontier import rounds
from benchmarks.frontier.__main__ import OUT, parse
from benchmarks.frontier.choices import SMALL, SPEED_PAIRS
from benchmarks.frontier.fronts import Point, at_work, blend_at, blended, envelope, front
from benchmarks.frontier.methods import Method, composed, methods
from benchmarks.frontier.page import page
from benchmarks.frontier.plan import Scenario, scenarios
from benchmarks.frontier.plot import draw, limits
from benchmarks.frontier.report import Table, acts, rows, tabulate
from benchmarks.frontier.rounds import References, measure, unit, whole_rounds
from benchmarks.frontier.runs import Made, run
from benchmarks.frontier.work import Ledger
from benchmarks.quality.plan import Clock
from benchmarks.quality.raw import WHOLE, Raw, Record
from demo.checkpoint import new_model
from draftattention.draftattn_core import TokenGrid
from draftattention.draftattn_core.run.step_cache.spread import LEAST

SCENARIO = Scenario("calm", 4, (TokenGrid(2, 4, 6),), (0, 1))


def point(family: str, work: float, psnr: float, *, method: str = "", acts: bool = True) -> Point:
    return Point(method or f"{family} {work}", family, work, psnr, psnr / 100, 0.0, None, acts)


class TestWork:
    def test_a_dense_run_of_all_steps_is_one(self) -> None:
        assert Ledger(20, 0, 20.0).work(20, 0.7) == pytest.approx(1.0)

    def test_an_answered_evaluation_is_free_and_a_sparse_one_pays_for_the_rest_of_the_model(self) -> None:
        # 5 of 10 answered; of the others 2 dense, 3 with a tenth of the attention.
        assert Ledger(5, 5, 2.3).work(10, 0.8) == pytest.approx((5 * 0.2 + 2.3 * 0.8) / 10)

    def test_fewer_steps_are_counted_beside_the_reference(self) -> None:
        assert Ledger(5, 0, 5.0).work(20, 0.3) == pytest.approx(0.25)


class TestFronts:
    def test_a_point_that_another_beats_in_both_is_not_on_it(self) -> None:
        points = [point("a", 0.2, 20), point("a", 0.3, 19), point("a", 0.4, 30)]
        assert [p.work for p in front(points, "psnr")] == [0.2, 0.4]

    def test_between_two_points_it_is_linear_and_beyond_the_last_it_stays(self) -> None:
        points = [point("a", 0.2, 20), point("a", 0.4, 30)]
        assert at_work(points, 0.25, "psnr") == pytest.approx(22.5)
        assert at_work(points, 0.9, "psnr") == 30

    def test_below_its_cheapest_point_a_family_has_nothing(self) -> None:
        assert at_work([point("a", 0.2, 20)], 0.19, "psnr") is None

    def test_a_mean_of_equal_works_that_rounding_lifts_a_hair_above_still_reaches_that_work(self) -> None:
        lifted = sum([0.2] * 17) / 17
        points = [point("a", lifted, 20), point("a", 0.3, 30)]
        assert lifted > 0.2 and at_work(points, 0.2, "psnr") == 20

    def test_of_equal_works_that_rounding_sets_apart_the_best_is_read(self) -> None:
        points = [point("a", 0.1, 10), point("a", 0.3 - 1e-12, 20), point("a", 0.3, 30)]
        assert [p.psnr for p in front(points, "psnr")] == [10, 30] and at_work(points, 0.3, "psnr") == 30

    def test_the_envelope_names_the_best_family_at_a_work(self) -> None:
        points = [point("a", 0.1, 20), point("b", 0.3, 40)]
        assert envelope(points, 0.2, "psnr") == ("a", 20.0)
        assert envelope(points, 0.3, "psnr") == ("b", 40.0)
        assert envelope(points, 0.05, "psnr") is None


class TestCompositions:
    def test_every_number_of_steps_has_some_of_each_rule(self) -> None:
        for steps in SMALL:
            found = {(method.skip, method.solver) for method in methods(steps) if composed(method)}
            # Runs of 4 steps are computed whole, as far as plans go.
            planned = {("spread", "euler")} if steps > LEAST else set()
            assert found == {("easycache", "euler"), ("forecast", "euler"), (None, "dpmpp_2m"), *planned}

    def test_a_real_size_has_fewer_rows_of_the_same_families(self) -> None:
        small, real = methods(20), methods(20, real=True)
        assert len(real) < len(small) and {m.family for m in real} <= {m.family for m in small}

    def test_one_whose_second_lever_is_idle_does_not_act(self) -> None:
        sparse = Method("f x sparse, ours", sparse="ours", density=0.3, skip="forecast", threshold=0.1)
        assert acts(record(sparse, Ledger(16, 4, 9.0)))
        assert not acts(record(sparse, Ledger(17, 3, 9.0)))
        assert not acts(record(replace(sparse, density=0.7), Ledger(10, 10, 9.0)))

    def test_a_line_between_two_settings_is_read_off_other_rounds_by_name(self) -> None:
        here = [point("a", 0.2, 20, method="cheap"), point("a", 0.4, 30, method="dear")]
        there = [point("a", 0.2, 10, method="cheap"), point("a", 0.4, 50, method="dear")]
        blend = blend_at(here, 0.25, "psnr")
        assert blend == {"cheap": pytest.approx(0.75), "dear": pytest.approx(0.25)}
        assert blended(there, blend, "psnr") == pytest.approx(20.0)
        assert blended(there[:1], blend, "psnr") is None

    def test_halves_are_halves_of_the_seeds_not_of_the_grids(self) -> None:
        scenario = replace(SCENARIO, grids=(TokenGrid(2, 4, 6), TokenGrid(2, 6, 4)))
        quality = {("2x4x6", 0): 10.0, ("2x6x4", 0): 20.0, ("2x4x6", 1): 30.0, ("2x6x4", 1): 40.0}
        records = []
        for (grid, seed), psnr in quality.items():
            t, h, w = map(int, grid.split("x"))
            for m in methods(4):
                records.append(record(m, Ledger(2, 2, 2.0), psnr, seed))
                records[-1]["unit"] = unit(scenario, TokenGrid(t, h, w), seed, m)
        table = tabulate(scenario, records, None, lambda grid: 0.5)
        assert table is not None and {p.psnr for p in table.points} == {25.0}
        assert [(half.rounds, {p.psnr for p in half.points}) for half in table.halves] == [(2, {15.0}), (2, {35.0})]
        assert [{p.psnr for p in half.chosen_by} for half in table.halves] == [{35.0}, {15.0}]


def record(method: Method, ledger: Ledger, psnr: float = 20.0, seed: int = 0) -> Record:
    return {
        "unit": unit(SCENARIO, SCENARIO.grids[0], seed, method),
        "family": method.family,
        "name": method.name,
        "ledger": asdict(ledger),
        "scores": {"psnr_db": psnr, "ssim": psnr / 100, "flicker": 0.0},
        "converged": None,
    }


class TestTables:
    def test_a_round_that_lacks_one_method_is_left_out_of_every_row(self) -> None:
        records = [record(method, Ledger(2, 2, 2.0), seed=seed) for seed in (0, 1) for method in methods(4)]
        assert list(whole_rounds(SCENARIO, records)) == [("2x4x6", 0), ("2x4x6", 1)]
        assert list(whole_rounds(SCENARIO, records[:-1])) == [("2x4x6", 0)]
        assert len(rows(SCENARIO, records[:-1], lambda grid: 0.5)) == len(methods(4))

    def test_beside_the_converged_path_stand_the_rounds_in_which_every_sampler_has_it(self) -> None:
        records = [record(method, Ledger(2, 2, 2.0), seed=seed) for seed in (0, 1) for method in methods(4)]
        for one in records:
            late = one["unit"][3] == 1 and one["unit"][5]["solver"] == "uni_pc"
            one["converged"] = None if late else 10.0 + one["unit"][3]
        table = tabulate(SCENARIO, records, None, lambda grid: 0.5)
        assert table is not None and table.followed == 1 and {p.converged for p in table.points} == {10.0}

    def test_the_family_is_that_of_todays_plan(self) -> None:
        records = [record(replace(m, family="of old"), Ledger(2, 2, 2.0)) for m in methods(4)]
        assert {row["family"] for row in rows(SCENARIO, records, lambda grid: 0.5)} == {m.family for m in methods(4)}

    def test_reweighing_changes_the_work_of_sparse_rows_and_not_of_skipping_ones(self) -> None:
        records = [
            record(method, Ledger(4, 0, 1.0) if method.sparse else Ledger(2, 2, 2.0), seed=seed)
            for seed in (0, 1)
            for method in methods(4)
        ]
        tables = [tabulate(SCENARIO, records, share, lambda grid: 0.5) for share in (None, 0.9)]
        works = []
        for table in tables:
            assert table is not None
            works.append({p.family: p.work for p in table.points})
        assert works[0]["forecast"] == works[1]["forecast"] == 0.5
        weighed = {row["family"]: row["work_at"] for row in rows(SCENARIO, records, lambda grid: 0.5)}
        assert weighed["forecast"] == {"0.72": 0.5, "0.9": 0.5}
        assert weighed["sparse, ours"] == {"0.72": pytest.approx(0.28 + 0.72 / 4), "0.9": pytest.approx(0.1 + 0.9 / 4)}
        assert works[0]["sparse, ours"] == pytest.approx(0.5 + 0.5 / 4)
        assert works[1]["sparse, ours"] == pytest.approx(0.1 + 0.9 / 4)

    def test_an_idle_composition_is_listed_and_stands_on_no_front(self) -> None:
        points = (point("a", 0.2, 20), point("f x s", 0.2, 90, acts=False))
        text = page([(Table(SCENARIO, (("2x4x6", 0),), None, points), ["a.png", "b.png"])], None, [], [])
        assert "(a.png)" in text and "(b.png)" in text
        assert "(one lever idle)" in text and "| f x s |" not in text and "| a | - | **20.0** |" in text


class TestMeasuring:
    def test_a_stopped_run_goes_on_where_it_was(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ran: list[str] = []
        stopped: list[str] = []

        def stand_in(model: object, method: Method, grid: TokenGrid, seed: int) -> Made:
            name = f"{method.name} {seed}"
            if len(ran) == 7 and not stopped:
                stopped.append(name)
                raise KeyboardInterrupt
            ran.append(name)
            return Made(torch.zeros(2, 8, 12, 3, dtype=torch.uint8), Ledger(4, 0, 4.0))

        monkeypatch.setattr(rounds, "run", stand_in)
        raw, references = Raw(tmp_path / "units.jsonl", {"model": "m"}), References(tmp_path / "clips", "m")

        def go() -> bool:
            return measure(
                None,  # type: ignore[arg-type]
                SCENARIO,
                raw,
                references,
                Clock(1e9),
                shard=WHOLE,
                converged=False,
            )

        with pytest.raises(KeyboardInterrupt):
            go()
        assert go()
        # Every method once in both rounds, and each round's dense run of every sampler.
        assert len(ran) == len(set(ran)) == 2 * (len(methods(4)) + 3)
        assert set(stopped) < set(ran)
        assert len(raw.records()) == 2 * len(methods(4))

    def test_a_row_stands_beside_the_dense_run_of_its_own_sampler(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shades = {"euler": 0, "dpmpp_2m": 60, "uni_pc": 120}

        def stand_in(model: object, method: Method, grid: TokenGrid, seed: int) -> Made:
            # Fewer steps are one shade off the dense run of the sampler.
            shade = shades[method.solver] + (method.steps < SCENARIO.steps)
            return Made(torch.full((2, 8, 12, 3), shade, dtype=torch.uint8), Ledger(4, 0, 4.0))

        monkeypatch.setattr(rounds, "run", stand_in)
        raw, references = Raw(tmp_path / "units.jsonl", {"model": "m"}), References(tmp_path / "clips", "m")
        assert measure(None, SCENARIO, raw, references, Clock(1e9), shard=WHOLE, converged=False)  # type: ignore[arg-type]
        fewer = [record for record in raw.records() if record["family"].startswith("dense")]
        assert {record["unit"][5]["solver"] for record in fewer} == set(shades)
        assert {round(record["scores"]["psnr_db"], 1) for record in fewer} == {48.1}, "255 shades over one"

    @pytest.mark.parametrize("method", [Method("", steps=3), Method("", steps=3, sparse="ours", density=0.5, warm=1)])
    def test_the_ledger_of_a_real_run_counts_every_evaluation(self, method: Method) -> None:
        torch.manual_seed(0)
        made = run(new_model(num_layers=2).eval(), method, TokenGrid(3, 8, 8), seed=0)
        assert (made.ledger.computed, made.ledger.answered) == (3, 0)
        dense = method.sparse is None
        assert made.ledger.attention == 3.0 if dense else 1.0 < made.ledger.attention < 3.0
        assert made.frames.shape == (3, 16, 16, 3)

    def test_comfyuis_own_cache_answers_as_its_threshold_allows(self) -> None:
        torch.manual_seed(0)
        model, method = new_model(num_layers=2).eval(), Method("", steps=12, core="EasyCache")
        answered = [
            run(model, replace(method, threshold=threshold), TokenGrid(3, 8, 8), seed=0).ledger.answered
            for threshold in (0.0, 1e6)
        ]
        # Its window leaves out the first and the last, and its rate needs two computed ones within.
        assert answered == [0, 12 - 2 - 2]


def test_the_second_checkpoint_is_measured_by_rows_of_the_first_with_every_lever_and_all_that_speeds_choose_from() -> (
    None
):
    everything = {scenario.name: scenario.methods for scenario in scenarios(quick=False)}
    for steps in (4, 20):
        first, second = (everything[f"{model}, {steps} steps, small grids"] for model in ("calm", "lively"))
        assert set(second) < set(first) if steps == 20 else set(second) == set(first)
        levers = {(method.solver, method.skip, method.sparse) for method in first if not composed(method)}
        assert levers == {(method.solver, method.skip, method.sparse) for method in second if not composed(method)}
    of_speeds = {(method.share, method.density) for method in second if method.skip == "spread" and composed(method)}
    assert set(SPEED_PAIRS) <= of_speeds
    easycache = [{method for method in some if method.family == "easycache"} for some in (first, second)]
    assert easycache[0] == easycache[1]


class TestPlot:
    def test_a_point_right_of_the_window_does_not_squeeze_what_lies_in_it(self) -> None:
        pytest.importorskip("matplotlib")
        points = (point("a", 0.2, 20), point("a", 0.4, 30), point("b", 0.3, 25), point("b", 0.99, 100))
        psnr, ssim = draw(Table(replace(SCENARIO, steps=20), (("2x4x6", 0),), None, points)).axes
        assert psnr.get_ylim() == pytest.approx((19.5, 30.5))
        low, high = ssim.get_ylim()
        assert 0.6 < low < 0.7 and 0.8 < high < 0.9

    def test_no_line_passes_the_envelope_and_short_runs_show_where_they_lie(self) -> None:
        pytest.importorskip("matplotlib")
        points = (point("a", 0.5, 20), point("a", 0.9, 99), point("b", 0.6, 30), point("c", 0.3, 10))
        for axis in draw(Table(SCENARIO, (("2x4x6", 0),), None, points)).axes:
            assert axis.get_xlim() == (0.4, 0.95)
            better = max if axis.get_yscale() == "linear" else min
            lines = {str(line.get_label()): line for line in axis.get_lines()}
            envelope = dict(zip(*(map(float, data) for data in lines["envelope"].get_data())))
            drawn = [line for line in axis.get_lines() if line.get_linestyle() != "None" and len(line.get_xdata())]
            assert len(drawn) == 1 + 3
            for line in drawn:
                read = dict(zip(*(map(float, data) for data in line.get_data())))
                assert {work for work in envelope if min(read) < work < max(read)} <= set(read)
                assert all(better(read[work], envelope[work]) == envelope[work] for work in read if work in envelope)
            assert "c" not in lines, "it has no point in the window"

    def test_one_value_alone_has_room_on_both_sides(self) -> None:
        assert limits([30.0], log=False) == (29.5, 30.5)
        low, high = limits([0.1], log=True)
        assert low < 0.1 < high


class TestWhereItWrites:
    def test_a_quick_run_does_not_write_over_the_committed_table(self) -> None:
        assert parse([]).out == OUT and parse(["--quick"]).out not in (OUT, *OUT.parents)
        assert parse(["--quick", "--out", "here"]).out == Path("here")
