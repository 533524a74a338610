"""The quality bench in several sittings: what is kept, what is measured anew."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from draftattention.draftattn_core import TokenGrid

pytest.importorskip("diffusers")

from benchmarks.quality import captured, end_to_end
from benchmarks.quality.__main__ import Bench
from benchmarks.quality.plan import DENSE_FEWER, CapturedPlan, Clock, EndToEndPlan, Plan
from benchmarks.quality.raw import WHOLE, Raw, Shard, Store, definition
from benchmarks.quality.rows import Row, all_rows
from demo import checkpoint

GRIDS = (TokenGrid(4, 16, 16), TokenGrid(3, 16, 20))

A = CapturedPlan(GRIDS, (0, 1), 3, (0, 2), (0, 1), sampled=32, targets=(0.1, 0.3), peer_checks=0)

B = EndToEndPlan(
    "tiny", GRIDS, (0,), (("paper", 0.3, 4, 0.25), ("ours", 0.3, 4, 0.25), (DENSE_FEWER, 0.3, 4, 0.0)), 1.0
)

TINY = {"num_layers": 2, "ffn_dim": 64, "num_attention_heads": 2, "attention_head_dim": 32}

PLAN = Plan("tiny", 10.0, A, (B,), ())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return checkpoint.new_model(**TINY).eval()


@pytest.fixture(scope="module")
def model_file(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    checkpoint.save(model.state_dict(), path, config={**checkpoint.TINY_CONFIG, **TINY})
    return path


def rows() -> dict[str, Row]:
    return {row.name: row for row in all_rows() if row.name in ("paper", "ours", "sol")}


@dataclass
class Run:
    """A bench on a tiny model, part A and B."""

    model: object
    folder: Path
    weights: str = "one"
    rows: dict[str, Row] | None = None

    @property
    def table(self) -> dict[str, Row]:
        return self.rows or rows()

    @property
    def store(self) -> Store:
        return Store(self.folder / "raw", "tiny", self.weights, "cpu")

    def a(self, shard: Shard = WHOLE) -> None:
        with torch.inference_mode():
            captured.run_plan(self.model, A, list(self.table.values()), Clock(9), self.store.captured(A), shard)

    def b(self, shard: Shard = WHOLE) -> None:
        with torch.inference_mode():
            raw = self.store.end_to_end(B)
            end_to_end.run_plan(self.model, B, self.table, Clock(9), raw, share=0.5, shard=shard)

    def collect_a(self):
        return captured.collect(A, list(self.table.values()), self.store.captured(A))

    def collect_b(self):
        cells, left_out = end_to_end.collect(B, self.table, self.store.end_to_end(B), share=0.5)
        scores = {(c.row, *key): replace(s, seconds=0.0) for c in cells for key, s in c.scores.items()}
        return scores, left_out


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory) -> Run:
    """Both parts in one sitting."""
    run = Run(model, tmp_path_factory.mktemp("finished"))
    run.a()
    run.b()
    return run


class Killed(BaseException):
    pass


def kill_after(monkeypatch, units: int) -> None:
    """The next run dies in the middle of its unit number `units`, counted from 0: half a line is written."""
    append = Raw.append
    written = [0]

    def dying(self: Raw, record: dict) -> None:
        if written[0] == units:
            with self.path.open("a") as file:
                file.write(json.dumps({**self.identity, **record})[:40])
            raise Killed
        written[0] += 1
        append(self, record)

    monkeypatch.setattr(Raw, "append", dying)


def units(raw: Raw) -> list[dict]:
    return raw.records()


def test_one_sitting_measures_everything(finished: Run) -> None:
    measured, _, left_out = finished.collect_a()
    assert len(units(finished.store.captured(A))) == len(A.calls) == 16
    assert len({m.call for m in measured}) == 16
    # A block of 128 is an eighth of such a grid.
    assert [line.split(",")[0] for line in left_out] == ["captured calls at 10%"]
    scores, left_out = finished.collect_b()
    assert len(scores) == 6 and left_out == []


def test_a_kill_loses_only_the_captured_call_under_way(model, finished: Run, tmp_path, monkeypatch) -> None:
    run = Run(model, tmp_path)
    with monkeypatch.context() as patch:
        kill_after(patch, 5)
        with pytest.raises(Killed):
            run.a()
    before = units(run.store.captured(A))
    assert len(before) == 5
    measured, _, left_out = run.collect_a()
    assert len({m.call for m in measured}) == 5
    assert "5 of 16 measured" in left_out[0]
    assert f"({GRIDS[0]}, 0)" not in left_out[0] and f"({GRIDS[1]}, 0)" in left_out[0]
    run.a()
    after = units(run.store.captured(A))
    assert after[:5] == before and len(after) == 16
    assert run.collect_a() == finished.collect_a()


def test_a_kill_loses_only_the_sampling_run_under_way(model, finished: Run, tmp_path, monkeypatch) -> None:
    run = Run(model, tmp_path)
    with monkeypatch.context() as patch:
        kill_after(patch, 4)
        with pytest.raises(Killed):
            run.b()
    before = units(run.store.end_to_end(B))
    assert len(before) == 4
    scores, left_out = run.collect_b()
    assert {key[1:] for key in scores} == {(str(GRIDS[0]), 0)}, "the round cut short is in no mean"
    assert len(scores) == 3 and f"measured in part and not in the table: ({GRIDS[1]}, 0)" in left_out[0]
    run.b()
    after = units(run.store.end_to_end(B))
    assert after[:4] == before and len(after) == 6
    assert run.collect_b() == finished.collect_b()


def test_a_first_round_cut_short_shows_what_it_has(model, tmp_path, monkeypatch) -> None:
    run = Run(model, tmp_path)
    with monkeypatch.context() as patch:
        kill_after(patch, 2)
        with pytest.raises(Killed):
            run.b()
    scores, left_out = run.collect_b()
    assert {key[0] for key in scores} == {"paper", "ours"}
    assert any(DENSE_FEWER in line and "not measured yet" in line for line in left_out)


def test_shards_add_up_to_the_whole(model, finished: Run, tmp_path) -> None:
    run = Run(model, tmp_path)
    for shard in (Shard.parse("2/2"), Shard.parse("1/2")):
        run.a(shard)
        run.b(shard)
    assert len(units(run.store.captured(A))) == 16 and len(units(run.store.end_to_end(B))) == 6
    assert run.collect_a() == finished.collect_a()
    assert run.collect_b() == finished.collect_b()


def test_other_weights_are_not_mixed(model, finished: Run) -> None:
    other = Run(model, finished.folder, weights="two")
    measured, _, left_out = other.collect_a()
    assert measured == [] and "0 of 16" in left_out[0]
    assert other.collect_b()[0] == {}


def test_other_settings_are_not_mixed(finished: Run) -> None:
    everything = list(rows().values())
    for plan in (replace(A, steps=20), replace(A, sampled=64)):
        assert captured.collect(plan, everything, finished.store.captured(plan))[0] == []
    plan = replace(B, cfg=2.0)
    assert end_to_end.collect(plan, rows(), finished.store.end_to_end(plan), share=0.5)[0] == []


def test_a_row_that_does_something_else_now_is_measured_anew_and_nothing_more(model, tmp_path) -> None:
    run = Run(model, tmp_path)
    run.a()
    changed = rows()
    changed["ours"] = replace(changed["ours"], policy=replace(changed["ours"].policy, tail="mean"))
    assert definition(changed["ours"], GRIDS[0]) != definition(rows()["ours"], GRIDS[0])
    again = Run(model, tmp_path, rows=changed)
    measured, _, left_out = again.collect_a()
    assert measured == [] and any("16 more on which some rows are not measured" in line for line in left_out)
    again.a()
    new = units(again.store.captured(A))[16:]
    assert len(new) == 16 and all([r["row"] for r in record["rows"].values()] == ["ours"] for record in new)
    old, now = ({(m.row, m.call, m.target): m for m in r.collect_a()[0]} for r in (run, again))
    assert old.keys() == now.keys()
    assert all((old[key] == now[key]) == (key[0] != "ours") for key in old)


def test_a_renamed_row_is_not_measured_again(finished: Run) -> None:
    renamed = [replace(row, name=f"{row.name}_too", label="") for row in rows().values()]
    measured, _, left_out = captured.collect(A, renamed, finished.store.captured(A))
    assert len(measured) == len(finished.collect_a()[0])
    assert not any("not measured" in line for line in left_out)


def test_results_need_raw_results_only(model, model_file, finished: Run, tmp_path, monkeypatch) -> None:
    bench = Bench.load(PLAN, model_file, "cpu", tmp_path)
    bench = replace(bench, rows=rows(), twins={})
    for name in ("captured_tiny.jsonl", "end_to_end_tiny_tiny.jsonl"):
        source = (finished.store.folder / name).read_text().replace('"model":"one"', f'"model":"{bench.store.model}"')
        bench.store.folder.mkdir(exist_ok=True)
        (bench.store.folder / name).write_text(source)
    bench = replace(bench, share=0.5)
    monkeypatch.setattr(captured, "study_call", None)
    monkeypatch.setattr(end_to_end, "sample", None)
    results = bench.results("cpu")
    assert {summary.row for summary in results.summaries} == set(rows())
    assert {cell.row for cell in results.cells} == {"paper", "ours", DENSE_FEWER}
