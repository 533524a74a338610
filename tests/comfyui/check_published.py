"""Runs in ComfyUI's Python: published systems chosen on the node, and CalibAtt from its calibration to its use."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import host
import torch
from model_cases import WAN
from toy_runs import LAYERS, TEXT, difference, run, wan

CHECKS, check = host.registry()

# 9 x 12 x 16 tokens: 13.5 blocks of 128, 27 of 64.
LATENT = torch.zeros(1, 16, 9, 24, 32)
OTHER = torch.zeros(1, 16, 5, 28, 24)
STEPS = 10
FEW = 3
DENSITY = 0.5


class Hidden:
    unique_id = None


def apply(model: Any, **choices: Any) -> tuple[Any, Any]:
    """By the node itself, with its defaults."""
    node = host.pack("nodes.apply").ApplyDraftAttention
    node.hidden = Hidden()
    given = {"preset": "custom", "sparsity": 1 - DENSITY, "dense_start": 0.0, "min_tokens": 0, **choices}
    return tuple(node.execute(model, **given))


def dense() -> torch.Tensor:
    return run(wan(), LATENT, steps=STEPS)


@contextmanager
def calls_of(handle: Any) -> Iterator[list[Any]]:
    """The sparse calls of a run."""
    seen: list[Any] = []
    handle.events.subscribe(host.pack("draftattn_core.run.events").CallDone, seen.append)
    yield seen


def assert_masked_attention(result: Any) -> None:
    """The output of a call is softmax attention over the tokens of the blocks that it says it kept."""
    request, tables = result.request, result.request.tables
    q_block, k_block = (table.of_token[torch.argsort(tables.perm)] for table in (tables.q, tables.k))
    mask = request.keep[:, :, q_block][..., k_block]
    logits = request.q.double() @ request.k.double().transpose(-1, -2) * request.scale
    truth = logits.masked_fill(~mask, -torch.inf).softmax(-1) @ request.v.double()
    torch.testing.assert_close(result.out.double(), truth, rtol=1e-4, atol=1e-5)


def runs_as_published(preset: str, dense_steps: int, most: float = DENSITY + 0.25) -> None:
    patched, handle = apply(wan(), preset=preset)
    with calls_of(handle) as seen:
        out = run(patched, LATENT, steps=STEPS)
    report, sparse = handle.report, STEPS - dense_steps
    first = 1 if preset == "radial attention" else 0
    assert report.calls_sparse == sparse * (LAYERS - first), (report.summary(), report.notes)
    assert set(report.calls_dense()) <= {"schedule", "dense layer", "not self-attention"}, report.calls_dense()
    densities = [float(call.result.density()) for call in seen]
    assert DENSITY - 0.1 < sum(densities) / len(densities) < most, densities
    exact = dense()
    assert out.isfinite().all() and 0 < difference(out, exact) < 0.1, difference(out, exact)
    if preset == "radial attention":  # which drops some frames at any density
        assert_masked_attention(seen[0].result)
        return
    whole, _ = apply(wan(), preset=preset, sparsity=0.002)
    nearly = difference(run(whole, LATENT, steps=STEPS), exact)
    assert nearly < 1e-4, f"with every block kept the call must be dense attention, in whatever order: {nearly}"


def each_head_has_its_own_mask() -> None:
    """Sparse VideoGen: the one that loses less, computed in its order; some heads of the run take either."""
    rule, taken = host.pack("draftattn_core.method.rules.svg"), []
    measure = rule.profile_errors

    def watched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *more: Any) -> torch.Tensor:
        errors: torch.Tensor = measure(q, k, v, *more)
        taken.append((q, k, v, errors[1] < errors[0]))
        return errors

    patched, handle = apply(wan(), preset="sparse videogen")
    rule.profile_errors = watched
    try:
        with calls_of(handle) as seen:
            run(patched, LATENT, steps=FEW)
    finally:
        rule.profile_errors = measure
    assert len(seen) == len(taken) == FEW * LAYERS
    kinds = torch.cat([moved.flatten() for *_, moved in taken])
    assert kinds.any() and not kinds.all(), f"{int(kinds.sum())} of {len(kinds)} heads are temporal"
    frames, places = LATENT.shape[2], LATENT.shape[3] * LATENT.shape[4] // 4
    token = torch.arange(frames * places)
    for call, (q, k, v, moved) in zip(seen, taken):
        keep, logits = call.result.request.keep, q.double() @ k.double().transpose(-1, -2) * q.shape[-1] ** -0.5
        for at in torch.cartesian_prod(torch.arange(moved.shape[0]), torch.arange(moved.shape[1])).tolist():
            place = token % places * frames + token // places if moved[tuple(at)] else token
            mask = keep[tuple(at)][place // 128][:, place // 128]
            truth = logits[tuple(at)].masked_fill(~mask, -torch.inf).softmax(-1) @ v[tuple(at)].double()
            torch.testing.assert_close(call.result.out[tuple(at)].double(), truth, rtol=1e-4, atol=1e-5)


@check("Sparse VideoGen runs by its preset")
def svg() -> None:
    runs_as_published("sparse videogen", 2)
    each_head_has_its_own_mask()


@check("Radial attention runs by its preset")
def radial() -> None:
    # Of nine frames its narrowest windows keep this much already.
    runs_as_published("radial attention", 3, most=0.8)


@check("AdaSpa runs by its preset")
def adaspa() -> None:
    runs_as_published("adaspa", 2)


@check("SVG-EAR runs by its preset")
def ear() -> None:
    runs_as_published("svg-ear", 2)


@check("every method runs with our tail behind it and comes closer than without")
def our_tail() -> None:
    exact = run(wan(), LATENT, steps=2)
    for method in ("row", "top_p", "draft", "svg", "radial", "adaspa", "ear", "tail_error"):
        errors = {}
        for tail in ("auto", "none") if method != "tail_error" else ("auto",):
            patched, handle = apply(wan(), method=method, tail=tail, blocks="64/64")
            errors[tail] = difference(run(patched, LATENT, steps=2), exact)
            assert handle.report.calls_sparse == 2 * LAYERS, (method, handle.report.summary(), handle.report.notes)
        assert errors["auto"] < errors.get("none", 0.1), (method, errors)


def folder() -> None:
    import folder_paths

    folder_paths.models_dir = tempfile.mkdtemp()


def calibrate(model: Any, **inputs: Any) -> Any:
    return host.pack("nodes.calibrate").DraftAttentionCalibrate.execute(model, "toy", masks="64", **inputs)[0]


def profile() -> Any:
    made = host.pack("nodes.profile").DraftAttentionProfile
    made.hidden = None
    return tuple(made.execute("toy"))


def brute_force_mask(q: torch.Tensor, k: torch.Tensor, block: int, mass: float) -> torch.Tensor:
    """(H, R, C): the fewest blocks of the softmax map whose mean mass reaches `mass`, by loops."""
    probabilities = (q[0].double() @ k[0].double().transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    rows = torch.stack([part.mean(1) for part in probabilities.split(block, 1)], 1)
    energy = torch.stack([part.sum(2) for part in rows.split(block, 2)], 2)
    keep = torch.zeros_like(energy, dtype=torch.bool)
    for head, row in ((h, r) for h in range(energy.shape[0]) for r in range(energy.shape[1])):
        held = 0.0
        for column in energy[head, row].argsort(descending=True).tolist():
            if held >= mass:
                break
            keep[head, row, column] = True
            held += float(energy[head, row, column])
    return keep


@check("CalibAtt calibrates on dense runs and follows its masks")
def calibatt() -> None:
    folder()
    exact = run(wan(), LATENT, steps=FEW)
    observed = run(calibrate(wan(), prompt="a fox"), LATENT, steps=FEW)
    assert torch.equal(observed, exact), "to vote does not change a run"
    loaded, text, _ = profile()
    assert "masks from 1 prompt, 1 run: grid 9x12x16, blocks 64/64, 3 noise levels" in text, text
    patched, handle = apply(wan(), preset="calibatt", profile=loaded)
    with calls_of(handle) as seen:
        out = run(patched, LATENT, steps=FEW)
    report = handle.report
    assert report.calls_sparse == FEW * LAYERS and not report.calls_dense().get("schedule"), report.summary()
    first = next(call for call in seen if (call.position.step, call.position.layer) == (0, 0))
    request, votes = first.result.request, loaded.calibration.experts["main"]
    masks = brute_force_mask(request.q, request.k, 64, loaded.calibration.target.at_share(0.0))
    repeats = (votes.similarity[0, 0] > 0.87).tolist()
    for head, repeated in enumerate(repeats):
        assert repeated or torch.equal(request.keep[0, head], masks[head]), "the first call's masks are its own"
        assert repeated or torch.equal(votes.votes[0][0, head].bool(), masks[head])
    assert report.executed_density() < 1.0 and out.isfinite().all()
    assert 0 < difference(out, exact) < 0.1, difference(out, exact)
    with_tail, handle = apply(wan(), method="calibatt", profile=loaded)
    run(with_tail, LATENT, steps=FEW)
    assert handle.report.calls_sparse == FEW * LAYERS, handle.report.notes


@check("CalibAtt serves another grid by displacements and says so")
def another_grid() -> None:
    folder()
    run(calibrate(wan()), LATENT, steps=FEW)
    patched, handle = apply(wan(), preset="calibatt", profile=profile()[0])
    out = run(patched, OTHER, steps=FEW)
    assert handle.report.calls_sparse == FEW * LAYERS, handle.report.notes
    assert any("calibrated on the grid 9x12x16 and the run has 5x14x12" in note for note in handle.report.notes)
    assert 0 < difference(out, run(wan(), OTHER, steps=FEW)) < 0.1


@check("masks are voted for by the conditional branch alone, and by more prompts with every run")
def conditional() -> None:
    folder()
    for prompt, cfg in (("a fox", 1.0), ("a fox", 3.0), ("a hen", 1.0)):
        negative = [[torch.full_like(TEXT[0][0], 0.3), {}]]
        run(calibrate(wan(), prompt=prompt), LATENT, steps=2, cfg=cfg, negative=negative)
    kept = profile()[0].calibration
    assert kept.runs == 3 and len(kept.prompts) == 2
    votes = kept.experts["main"]
    assert bool((votes.masks == 3).all()), "each run voted once per step and layer, with two branches in it or one"
    first = votes.votes[0][0]
    assert set(first.unique().tolist()) <= {0, 3}, "the first step's own calls are those of the condition in every run"


def refuses(attempt: Callable[[], Any], words: str) -> None:
    try:
        attempt()
    except ValueError as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"not refused: {words}")


@check("CalibAtt without fitting masks is refused in one sentence before sampling")
def refused() -> None:
    folder()
    refuses(lambda: apply(wan(), preset="calibatt"), "takes its masks from a profile: record dense runs")
    module = host.pack("nodes.calibrate").DraftAttentionCalibrate
    run(module.execute(wan(), "toy")[0], LATENT, steps=2)
    refuses(lambda: apply(wan(), preset="calibatt", profile=profile()[0]), "takes its masks from a profile")
    run(calibrate(wan()), LATENT, steps=2)
    other = host.build("WAN21_T2V", {**WAN, "model_type": "t2v", "num_layers": 3})
    patched, _ = apply(other, preset="calibatt", profile=profile()[0])
    refuses(lambda: run(patched, LATENT, steps=2), "these masks were calibrated on wan (2 layers, 2 heads of 64)")
    sparse, handle = apply(wan())
    run(calibrate(sparse), LATENT, steps=2)
    assert any("this run was sparse, so it did not vote" in note for note in handle.report.notes), handle.report.notes
