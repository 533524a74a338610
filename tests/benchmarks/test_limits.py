"""Targets are arithmetic: none is beyond what a perfect kernel gives, and the pages say what the formulas say."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks import limits
from benchmarks.kernels.plan import SHAPES
from benchmarks.limits import MODELS, RATES, STEPS, Sizes, as_planned, factor, of_preset, of_speed, tail_share, target
from draftattention.draftattn_core.run.schedule import PRESETS
from draftattention.draftattn_core.run.speed import SPEEDS
from tools.comfyui.path import PACK_ROOT

BEGIN, END = "<!-- python -m benchmarks.limits -->\n", "<!-- end -->"


@pytest.mark.parametrize("sizes", MODELS, ids=lambda sizes: sizes.name)
def test_sizes_are_those_of_the_models_that_are_timed(sizes: Sizes) -> None:
    """Against every weight of diffusers' own class: what the sizes leave out is less than a hundredth."""
    pytest.importorskip("diffusers")
    from benchmarks.e2e.models import MODELS as TIMED
    from benchmarks.e2e.models import linear_flops

    model = TIMED[sizes.name]
    assert model.attention == (sizes.width // sizes.head, sizes.attended, sizes.head)
    assert (model.layers, model.video, model.text) == (sizes.layers, sizes.video, sizes.text)
    assert model.attention_flops == sizes.attention
    assert linear_flops(model) == pytest.approx(sizes.linear, rel=0.01)
    shape = next(shape for shape in SHAPES if shape.name == sizes.name)
    assert (shape.tokens, shape.layout.grid.tokens) == (sizes.attended, sizes.video)
    assert shape.flops * sizes.layers == sizes.attention


def test_the_products_of_a_tail_counted_one_by_one() -> None:
    """Head size 16, blocks of 4, 10 video tokens and 3 of text: three pooled keys."""
    dense = sum(2 * 2 * 16 for _ in range(13))
    pooled = {"none": 0, "mean": 2, "linear0": 2, "linear1": 4, "linear2": 6}
    for name, products in pooled.items():
        counted = 3 * products * 2 * 16 + (2 * 16 * 16 if name.startswith("linear") else 0)
        assert tail_share(10, 13, 16, name, 4) == pytest.approx(counted / dense)  # type: ignore[arg-type]
        matrix = 2 * 16 * 16 if name.startswith("linear") else 0
        # One of the three is kept: its pooled key is not computed.
        kept = (2 * products * 2 * 16 + matrix) / dense
        assert tail_share(10, 13, 16, name, 4, 1 / 3) == pytest.approx(kept)  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", MODELS, ids=lambda sizes: sizes.name)
def test_the_default_tail_costs_at_most_three_points_of_density_in_products(sizes: Sizes) -> None:
    for density in (0.1, 0.2, 0.3):
        assert tail_share(sizes.video, sizes.attended, sizes.head, density=density) <= 0.03


def test_no_factor_passes_that_of_a_perfect_kernel() -> None:
    for model in MODELS:
        sparse = [name for name, speed in SPEEDS.items() if speed.density < 1.0]
        for densities in (*map(of_preset, PRESETS), *map(of_speed, sparse)):
            for rates in RATES:
                for answered in (0.0, 0.5):
                    best = factor(model, densities, held=False, rates=rates, answered=answered)
                    ours = factor(model, densities, held=True, rates=rates, answered=answered)
                    assert 1.0 < ours < best
                    share = model.share(rates)
                    # Nothing but dense evaluations and weights is left.
                    dense = sum(density >= 1.0 for density in densities)
                    most = STEPS / (dense + (STEPS - dense) * (1 - answered) * (1 - share))
                    assert best < most


@pytest.mark.parametrize("sizes", MODELS, ids=lambda sizes: sizes.name)
def test_targets_lie_below_the_physical_limit(sizes: Sizes) -> None:
    from benchmarks.e2e.runs import TARGETS

    wanted = TARGETS[sizes.name]
    assert wanted == target(sizes.name)
    assert 1.0 < wanted < min(factor(sizes, of_preset("balanced"), held=False, rates=rates) for rates in RATES)
    assert 0.0 <= factor(sizes, of_preset("balanced"), held=True) - wanted < 0.05


def test_a_dense_run_is_as_fast_as_a_dense_run() -> None:
    assert factor(MODELS[0], [1.0] * 3, held=True, answered=0.9) == pytest.approx(1.0)
    # Half of the evaluations answered and nothing else: twice as fast.
    almost = [torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)).item()] * 4
    assert factor(MODELS[0], almost, held=False, answered=0.5) == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize("name", SPEEDS)
def test_a_speed_pays_for_the_steps_it_plans_and_for_no_other(name: str) -> None:
    planned = as_planned(name)
    computed = [density for density in planned if density is not None]
    assert len(planned) == STEPS and len(computed) == round(SPEEDS[name].share * STEPS)
    for model in MODELS:
        whole = STEPS / len(computed) * factor(model, computed, held=True)
        assert factor(model, planned, held=True) == pytest.approx(whole)


def test_the_page_holds_what_the_formulas_give() -> None:
    text = (PACK_ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    assert text.count(BEGIN) == 1
    assert text.split(BEGIN)[1].split(END)[0] == limits.page()


def test_the_readme_says_how_many_tokens_common_videos_have() -> None:
    assert limits.tokens_table() in (PACK_ROOT / "README.md").read_text(encoding="utf-8")
    # Rows and columns of a token: 8 in the latent and 2 in the patch, or 16 and 2, or 16 and 1. Frames: 4, the first 1.
    latents = {"Wan 2.2 5B": 32, "Wan 2.1": 16, "HunyuanVideo,": 16, "HunyuanVideo 1.5": 16}
    for sizes in limits.OFTEN:
        size, frames = re.findall(r"(\d+x\d+), (\d+) frames", sizes.name)[0]
        columns, rows = map(int, size.split("x"))
        (every,) = (every for name, every in latents.items() if sizes.name.startswith(name))
        assert sizes.video == ((int(frames) - 1) // 4 + 1) * (columns // every) * (rows // every)
