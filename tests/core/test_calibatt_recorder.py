"""CalibAtt's calibration pass: dense calls vote, votes are kept and added up, and a run follows them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core import Policy, Position, Run, Schedule, Settings
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout, build_tables
from draftattention.draftattn_core.method.calibatt.intervals import MOST_RUNS
from draftattention.draftattn_core.method.calibatt.masks import EnergyTarget
from draftattention.draftattn_core.method.calibatt.portable import PortableScores
from draftattention.draftattn_core.method.calibatt.survey import row_similarity
from draftattention.draftattn_core.run.calibatt_recorder import CalibAttRecorder, conditional_rows
from draftattention.draftattn_core.run.calibration import Calibration
from draftattention.draftattn_core.run.events import CallDone
from draftattention.draftattn_core.run.figures import BUCKETS
from draftattention.draftattn_core.run.fingerprint import ModelName, ProfileError
from draftattention.draftattn_core.run.published import published
from tests.core.cases import smooth_qkv
from tests.core.profiles import a_profile

GRID, BLOCK, HEADS, LAYERS, STEPS = TokenGrid(3, 5, 7), 8, 3, 2, 3
EXTRA = (4, 9)
TARGET = EnergyTarget(0.6, 0.9, 2.0)
MODEL = ModelName("wan", "main", "0" * 16, LAYERS, HEADS)


def inputs(step: int, layer: int, batch: int = 1, grid: TokenGrid = GRID, seed: int = 0) -> tuple[Tensor, ...]:
    layout = Layout(grid, *EXTRA, 8, 8, order="raster")
    q, k, v = smooth_qkv(layout, batch=batch, heads=HEADS, seed=seed + 10 * step + layer, noise=0.5)
    return 3 * q, k, v


def position(step: int, layer: int, **more: Any) -> Position:
    return Position(step, step / STEPS, layer, LAYERS, **more)


def brute_force(q: Tensor, k: Tensor, mass: float) -> Tensor:
    """(H, R, C) bool, from the whole map: extra keys count towards the mass and are no columns."""
    tokens, before = GRID.tokens, EXTRA[0]
    whole = (q[0].double() @ k[0].double().transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    video = whole[:, before : before + tokens]
    found = []
    for head in video:
        for rows in head.split(BLOCK):
            row = rows.mean(0)
            energies = [float(part.sum()) for part in row[before : before + tokens].split(BLOCK)]
            held, keep = 1.0 - sum(energies), [False] * len(energies)
            for column in sorted(range(len(energies)), key=lambda c: -energies[c]):
                keep[column] = held < mass
                held += energies[column] if held < mass else 0.0
            found.append(keep)
    return torch.tensor(found).view(HEADS, -1, len(energies))


def recorded(seeds: tuple[int, ...] = (0,), **given: Any) -> Iterator[Calibration]:
    for seed in seeds:
        recorder = CalibAttRecorder(MODEL, BLOCK, TARGET)
        for step in range(STEPS):
            for layer in range(LAYERS):
                q, k, v = inputs(step, layer, seed=seed)
                recorder.observe(q, k, v, Layout(GRID, *EXTRA), position(step, layer), STEPS)
        made = recorder.calibration(f"prompt {seed}")
        assert made is not None
        yield made


def test_every_step_and_layer_votes_for_the_fewest_blocks_that_hold_its_mass() -> None:
    (made,) = recorded()
    votes = made.experts["main"]
    assert votes.progress == (0.0, 1 / 3, 2 / 3) and bool((votes.masks == 1).all()) and made.runs == 1
    for step in range(STEPS):
        for layer in range(LAYERS):
            q, k, _ = inputs(step, layer)
            expected = brute_force(q, k, 0.6 + 0.3 * 2.718281828459045 ** (-2.0 * step / STEPS))
            assert torch.equal(votes.votes[layer][step].bool(), expected), (step, layer)
            assert not expected.all() and expected.any(-1).all()
            tables = build_tables(Layout(GRID, *EXTRA, BLOCK, BLOCK, order="raster"))
            likeness = row_similarity(q, k, tables, q.shape[-1] ** -0.5)[0]
            torch.testing.assert_close(votes.similarity[step, layer], likeness.float(), rtol=1e-5, atol=1e-6)


def test_the_constants_are_those_published_for_the_number_of_steps() -> None:
    recorder = CalibAttRecorder(MODEL, BLOCK)
    recorder.observe(*inputs(0, 0), Layout(GRID, *EXTRA), position(0, 0), 50)
    assert recorder.target == EnergyTarget.for_steps(50) and "published for Wan 2.1 14B" in recorder.target.source


@pytest.mark.parametrize(
    ("kinds", "batch", "rows"),
    [((), 3, (0, 1, 2)), ((True,), 2, (0, 1)), ((False,), 2, ()), ((True, False), 4, (0, 1)), ((False, True), 2, (1,))],
)
def test_only_the_conditional_samples_of_a_batch_vote(
    kinds: tuple[bool, ...], batch: int, rows: tuple[int, ...]
) -> None:
    assert conditional_rows(position(0, 0, conditional=kinds), batch) == rows


def test_a_batch_of_both_branches_votes_as_the_condition_alone() -> None:
    alone, both, none = (CalibAttRecorder(MODEL, BLOCK, TARGET) for _ in range(3))
    layout = Layout(GRID, *EXTRA)
    cond, uncond = inputs(0, 0), inputs(0, 0, seed=5)
    alone.observe(*cond, layout, position(0, 0), STEPS)
    together = tuple(torch.cat(pair) for pair in zip(uncond, cond, strict=True))
    both.observe(*together, layout, position(0, 0, conditional=(False, True)), STEPS)
    none.observe(*uncond, layout, position(0, 0, conditional=(False,)), STEPS)
    one, other = (recorder.calibration().experts["main"] for recorder in (alone, both))  # type: ignore[union-attr]
    assert torch.equal(one.votes[0], other.votes[0]) and torch.equal(one.masks, other.masks)
    torch.testing.assert_close(one.similarity, other.similarity)
    assert none.calibration() is None


def test_a_call_that_comes_again_does_not_vote_again_and_parts_of_a_layer_vote_together() -> None:
    whole, parts = (CalibAttRecorder(MODEL, BLOCK, TARGET) for _ in range(2))
    q, k, v = inputs(0, 0)
    layout = Layout(GRID, *EXTRA)
    for _ in range(2):
        whole.observe(q, k, v, layout, position(0, 0), STEPS)
    for first, last in ((0, 1), (1, HEADS)):
        some = (x[:, first:last] for x in (q, k, v))
        parts.observe(*some, layout, position(0, 0, first_head=first, all_heads=HEADS), STEPS)
    one, other = (recorder.calibration().experts["main"] for recorder in (whole, parts))  # type: ignore[union-attr]
    assert int(one.masks[0, 0]) == 1 == int(other.masks[0, 0])
    assert torch.equal(one.votes[0], other.votes[0])


def test_half_of_the_prompts_decide() -> None:
    runs = list(recorded((0, 100, 200, 300)))
    together = runs[0].merged(runs[1]).merged(runs[2]).merged(runs[3])
    assert together.runs == 4 and len(together.prompts) == 4
    exact = together.compiled("main").exact
    counts = sum(run.experts["main"].votes[1][2].int() for run in runs)
    expected = counts >= 2
    best = counts.argmax(-1, keepdim=True)
    expected |= ~expected.any(-1, keepdim=True) & (torch.arange(expected.shape[-1]) == best)
    found = exact.lists[2, 1].mask()
    assert bool((found | ~expected).all()), "steps that share a list keep what any of them keeps"
    alone = (exact.lists[2, 1] is not exact.lists[step, 1] for step in (0, 1))
    assert not all(alone) or torch.equal(found, expected)


def test_rows_of_the_lists_that_a_run_follows_have_a_bounded_number_of_runs() -> None:
    (made,) = recorded()
    layout = replace(made.layout, grid=TokenGrid(2, 10, 28))
    blocks = layout.grid.tokens // BLOCK
    votes = torch.zeros(STEPS, HEADS, blocks, blocks, dtype=torch.uint8)
    votes[..., ::2] = 1
    cells = PortableScores.for_layout(1, build_tables(layout)).pairs.numel()
    each = range(LAYERS)
    expert = replace(
        made.experts["main"],
        votes=dict.fromkeys(each, votes),
        energy=dict.fromkeys(each, torch.ones(BUCKETS, HEADS, cells)),
    )
    exact = replace(made, layout=layout, experts={"main": expert}).compiled("main").exact
    for found in exact.lists.values():
        assert found.bounds.shape[-2] == MOST_RUNS < blocks // 2
        mask = found.mask()
        assert bool(mask[..., ::2].all()) and bool((mask[..., 1::2].sum(-1) == blocks // 2 - MOST_RUNS).all())


def test_what_does_not_belong_together_is_refused() -> None:
    (made,) = recorded()
    with pytest.raises(ProfileError, match="calibrate on one grid"):
        made.merged(replace(made, layout=replace(made.layout, grid=TokenGrid(3, 7, 5))))
    with pytest.raises(ProfileError, match="keep the masses"):
        made.merged(replace(made, target=EnergyTarget(0.5, 0.9, 2.0)))
    main = made.experts["main"]
    for change, words in (
        ({"weights": "1" * 16}, "other weights"),
        ({"progress": (0.0, 0.1, 0.9)}, "other noise levels"),
        ({"masks": main.masks + 254}, "start a new calibration"),
    ):
        other = replace(made, experts={"main": replace(main, **change)})  # type: ignore[arg-type]
        with pytest.raises(ProfileError, match=words):
            made.merged(other)
    for model, words in (
        (replace(MODEL, layers=4), "which the model is not"),
        (replace(MODEL, expert="low"), "no masks"),
    ):
        with pytest.raises(ProfileError, match=words):
            made.check(model)
    assert made.check(replace(MODEL, weights="")) == ()
    assert "other weights" in made.check(replace(MODEL, weights="x"))[0]


def follow(made: Calibration, grid: TokenGrid = GRID, steps: int = STEPS) -> tuple[Run, dict[Any, Any]]:
    """A run by these masks, and what its calls kept."""
    profile = replace(a_profile(), calibration=made)
    run = Run(replace(published("calibatt", profile=profile), backend="torch"), model=MODEL).start(steps)
    kept: dict[Any, Any] = {}
    run.events.subscribe(CallDone, lambda done: kept.update({(done.position.step, done.position.layer): done.result}))
    for step in range(steps):
        for layer in range(LAYERS):
            q, k, v = inputs(step, layer, grid=grid)
            at = Position(step, step / steps, layer, LAYERS)
            run.calls.attention(
                q, k, v, grid=grid, position=at, extra_before=EXTRA[0], extra_after=EXTRA[1], dense=lambda q=q: q
            )
    return run, kept


def test_a_run_of_the_same_grid_and_steps_keeps_what_was_voted() -> None:
    (made,) = recorded()
    run, kept = follow(made)
    assert run.report.calls_sparse == STEPS * LAYERS and not run.report.notes, run.report.notes
    exact = made.compiled("main").exact
    for (step, layer), result in kept.items():
        keep = result.request.keep[0]
        lists = exact.lists[step, layer].mask()
        for head, repeats in enumerate(exact.repetition[step, layer]):
            assert repeats or torch.equal(keep[head, : lists.shape[1], : lists.shape[2]], lists[head])


def test_a_run_of_more_steps_takes_the_masks_of_the_nearest_noise_level() -> None:
    (made,) = recorded()
    run, kept = follow(made, steps=6)
    assert run.report.calls_sparse == 6 * LAYERS
    exact = made.compiled("main").exact
    for step, nearest in ((0, 0), (2, 1), (5, 2)):
        lists = exact.lists[nearest, 1].mask()
        for head, repeats in enumerate(exact.repetition[nearest, 1]):
            keep = kept[step, 1].request.keep[0, head, : lists.shape[1], : lists.shape[2]]
            assert repeats or torch.equal(keep, lists[head])


def test_another_grid_is_served_by_displacements_at_the_masks_density_with_a_note() -> None:
    (made,) = recorded()
    grid = TokenGrid(4, 6, 8)
    run, kept = follow(made, grid=grid)
    assert run.report.calls_sparse == STEPS * LAYERS
    assert [note for note in run.report.notes if "calibrated on the grid 3x5x7 and the run has 4x6x8" in note]
    density = made.compiled("main").densities[0, 0]
    keep = kept[0, 0].request.keep[0, :, : grid.tokens // BLOCK, : grid.tokens // BLOCK]
    for head, wanted in enumerate(density):
        assert float(keep[head].float().mean()) == pytest.approx(wanted, abs=1.5 / keep[head].numel() + 0.02)


def test_a_dense_run_votes_and_a_sparse_one_says_why_it_does_not() -> None:
    def run(density: float) -> Run:
        settings = Settings(
            Policy(tail="none"), Schedule(((0.0, density),)), record_masks=True, mask_block=BLOCK, backend="torch"
        )
        one = Run(settings, model=MODEL).start(STEPS)
        for step in range(STEPS):
            for layer in range(LAYERS):
                q, k, v = inputs(step, layer)
                one.calls.attention(
                    q, k, v, grid=GRID, position=position(step, layer), extra_before=EXTRA[0], extra_after=EXTRA[1],
                    dense=lambda q=q: q,
                )  # fmt: skip
        return one

    dense, sparse = run(1.0), run(0.5)
    made = dense.calibration("a fox")
    assert made is not None and len(made.prompts) == 1 and bool((made.experts["main"].masks == 1).all())
    assert sparse.calibration() is None and any("did not vote" in note for note in sparse.report.notes)


def test_masks_of_another_model_are_refused_before_the_run_begins() -> None:
    (made,) = recorded()
    settings = published("calibatt", profile=replace(a_profile(), calibration=made))
    with pytest.raises(ProfileError, match="calibrated on wan"):
        Run(settings, model=replace(MODEL, heads=5))
