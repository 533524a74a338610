"""What users choose on DraftAttention Sparse, and the settings it becomes."""

from __future__ import annotations

import re

import pytest

from tools.comfyui.path import PACK_ROOT


@pytest.fixture
def presets(part):
    return part("nodes.inputs.presets")


def densities(presets, steps: int, tokens: int = 80_000, **choices) -> list[float]:
    schedule = presets.Choices(**choices).settings(steps, tokens).schedule
    return [schedule.curve((i + 0.5) / steps) for i in range(steps)]


def test_custom_is_dense_at_the_start_and_then_of_one_density(presets) -> None:
    found = densities(presets, 20, preset="custom", sparsity=0.75, dense_start=0.1)
    assert found == [1.0] * 2 + [0.25] * 18


def test_paper_is_the_published_method(presets) -> None:
    settings = presets.Choices(preset="paper", sparsity=0.9, tail="linear2", blocks=(128, 64)).settings(50, 80_000)
    assert settings.policy.method == "draft" and settings.policy.tail == "none" and not settings.auto_tail
    assert (settings.q_block, settings.k_block, settings.tile) == (128, 128, (1, 8, 16))
    assert settings.schedule.curve(0.2) == 1.0 and settings.schedule.curve(0.3) == pytest.approx(0.1)


def test_auto_spends_more_on_few_steps_and_on_short_videos(presets) -> None:
    def last(steps: int, tokens: int) -> float:
        return densities(presets, steps, tokens, preset="auto")[-1]

    assert last(4, 80_000) > last(8, 80_000) == last(12, 80_000) == last(30, 30_000) > last(30, 80_000)
    quality, balanced = (densities(presets, 30, preset=name)[-1] for name in ("quality", "balanced"))
    assert (last(8, 80_000), last(30, 80_000)) == (quality, balanced)
    assert max(densities(presets, 4, preset="auto")) < 1.0, "four steps have none to spare for a dense one"
    assert densities(presets, 30, preset="auto")[0] == 1.0


def test_presets_order_by_density(presets) -> None:
    last = [densities(presets, 30, preset=name)[-1] for name in ("quality", "balanced", "fast")]
    assert last == sorted(last, reverse=True) and last[0] > last[-1]


def test_a_schedule_replaces_the_preset_and_its_own_dense_layers_win(presets, part) -> None:
    schedule = part("draftattn_core.run.schedule").constant(0.5)
    found = presets.Choices(schedule=schedule, dense_layers=(0, -1)).settings(20, 80_000).schedule
    assert found.curve(0.0) == 0.5 and found.dense_layers == (0, -1)
    named = schedule.with_dense_layers((3,))
    assert presets.Choices(schedule=named, dense_layers=(0,)).settings(20, 80_000).schedule.dense_layers == (3,)


def test_an_unknown_preset_is_named(presets) -> None:
    with pytest.raises(ValueError, match="unknown preset 'best': choose one of auto"):
        presets.Choices(preset="best").settings(20, 0)


def test_without_a_speed_nothing_is_skipped_and_a_preset_means_what_it_meant(presets, with_masks) -> None:
    for name in presets.PRESET_NAMES:
        settings = presets.Choices(preset=name, profile=with_masks).settings(20, 80_000)
        assert settings == presets.Choices(preset=name, profile=with_masks, speed="off").settings(20, 80_000)
        assert settings.skip.rule == "off" and settings.budgets == "off"


def test_a_speed_sets_density_budgets_and_skipping_together(presets, part) -> None:
    speeds = part("draftattn_core.run.speed")
    for name in presets.SPEED_NAMES[2:]:
        settings = presets.Choices(preset="auto", speed=name).settings(20, 80_000)
        assert settings.skip.rule == "spread" and settings.skip.share == speeds.SPEEDS[name].share
        assert settings.budgets == "error"
        first = 1
        found = [settings.schedule.curve((i + 0.5) / 20) for i in range(20)]
        assert found == [1.0] * first + [speeds.SPEEDS[name].density] * (20 - first)


def test_a_faster_speed_skips_more_or_computes_less_of_each_step(presets, part) -> None:
    found = list(part("draftattn_core.run.speed").SPEEDS.values())
    for attention in (0.5, 0.7, 0.9):
        works = [speed.share * (1 - attention + attention * speed.density) for speed in found]
        assert works == sorted(works, reverse=True) and len(set(works)) == len(works), attention


def test_the_dense_evaluations_are_those_of_the_frontier(part) -> None:
    assert [part("draftattn_core.run.speed").dense_evaluations(steps) for steps in (4, 8, 20, 50)] == [1, 1, 1, 3]


def test_where_few_steps_leave_nothing_to_gain_a_speed_plans_them_all_and_the_reason_is_told(presets, part) -> None:
    settings = presets.Choices(speed="max").settings(4, 80_000)
    assert settings.skip.planned_steps(4) == {0, 1, 2, 3}
    skip, why_not = part("nodes.host.skipping").settle(settings.skip, 4, {}, None)
    assert skip.rule == "off" and "nothing to gain at 4 steps" in str(why_not)
    assert part("nodes.host.skipping").settle(settings.skip, 20, {}, None) == (settings.skip, None)
    assert settings.budgets == "error" and settings.schedule.curve(0.9) < 1.0


def test_auto_speed_is_one_of_the_others_at_every_size(presets, part) -> None:
    for tokens in (4_000, 80_000):
        named = presets.Choices(speed=part("draftattn_core.run.speed").AUTO).settings(20, tokens)
        assert presets.Choices(speed="auto").settings(20, tokens) == named


def test_published_presets_never_skip_and_custom_and_a_schedule_keep_their_densities(presets, part, with_masks) -> None:
    for name in presets.PUBLISHED_PRESETS:
        plain = presets.Choices(preset=name, profile=with_masks).settings(20, 80_000)
        assert presets.Choices(preset=name, profile=with_masks, speed="max").settings(20, 80_000) == plain
    custom = presets.Choices(preset="custom", sparsity=0.6, dense_start=0.5, speed="fast").settings(20, 80_000)
    assert custom.schedule.curve(0.4) == 1.0 and custom.schedule.curve(0.6) == pytest.approx(0.4)
    schedule = part("draftattn_core.run.schedule").constant(0.5)
    scheduled = presets.Choices(schedule=schedule, speed="fast").settings(20, 80_000)
    assert scheduled.schedule == schedule
    assert custom.skip == scheduled.skip and custom.skip.rule == "spread" and scheduled.budgets == "error"


def test_an_unknown_speed_is_named(presets) -> None:
    with pytest.raises(ValueError, match="unknown speed 'warp': choose one of auto, quality"):
        presets.Choices(speed="warp").settings(20, 0)


def test_published_presets_are_the_systems_as_published(presets, with_masks) -> None:
    def made(name: str, steps: int = 50, **choices):
        return presets.Choices(preset=name, sparsity=0.8, profile=with_masks, **choices).settings(steps, 80_000)

    wanted = {
        "sparse videogen": ("svg", "none", (128, 128), "raster", 10),
        "radial attention": ("radial", "none", (128, 128), "raster", 12),
        "adaspa": ("adaspa", "none", (64, 64), "raster", 9),
        "svg-ear": ("ear", "mean", (128, 64), "tile", 10),
        "calibatt": ("calibatt", "none", (32, 32), "raster", 0),
    }
    assert set(wanted) == {*presets.PUBLISHED_PRESETS} - {"paper"}
    for name, (method, tail, blocks, order, dense) in wanted.items():
        settings = made(name)
        policy = settings.policy
        assert (policy.method, policy.tail, policy.spread, policy.keep_own) == (method, tail, False, False), name
        assert ((settings.q_block, settings.k_block), settings.order) == (blocks, order), name
        assert not settings.auto_tail and not settings.auto_gain and not settings.probes, name
        densities = [settings.schedule.density(step / 50, 5, 40) for step in range(50)]
        assert [density is None for density in densities] == [True] * dense + [False] * (50 - dense), name
        assert name == "calibatt" or densities[-1] == pytest.approx(0.2), name
        assert made(name, 4).schedule.curve(0.0) < 1.0, "a quarter of four steps is too dear"


def test_published_layers_stay_dense_and_the_users_come_on_top(presets) -> None:
    def dense(name: str, layers: int) -> list[int]:
        schedule = presets.Choices(preset=name, dense_layers=(5,)).settings(50, 80_000).schedule
        return [layer for layer in range(layers) if schedule.density(0.9, layer, layers) is None]

    assert dense("sparse videogen", 30) == [5] and dense("sparse videogen", 40) == [0, 5] == dense("svg-ear", 40)
    assert dense("radial attention", 30) == [0, 5] and dense("adaspa", 30) == [5]


def test_bits_are_the_users_but_for_published_presets(presets) -> None:
    assert presets.Choices().settings(20, 80_000).bits == "16"
    assert presets.Choices(bits="auto", speed="balanced").settings(20, 80_000).bits == "auto"
    assert presets.Choices(bits="8", preset="paper").settings(20, 80_000).bits == "16"


def test_every_method_may_be_chosen_with_our_tail_behind_it(presets, with_masks) -> None:
    for name in presets.METHOD_NAMES[1:]:
        settings = presets.Choices(method=name, profile=with_masks).settings(20, 80_000)
        assert settings.policy.method == name and settings.policy.tail == "linear1" and settings.auto_tail
        assert settings.order == ("raster" if name in ("svg", "calibatt") else "tile"), name
    assert presets.Choices(method="auto").settings(20, 0) == presets.Choices().settings(20, 0)


def test_what_a_method_lacks_is_said_before_anything_runs(presets) -> None:
    with pytest.raises(ValueError, match="unknown selection method 'best': choose one of head"):
        presets.Choices(method="best").settings(20, 0)
    with pytest.raises(ValueError, match="takes its masks from a profile: record dense runs"):
        presets.Choices(preset="calibatt").settings(20, 0)
    with pytest.raises(ValueError, match="choose a tail, or another method"):
        presets.Choices(method="tail_error", tail="none").settings(20, 0)


@pytest.mark.parametrize(
    ("text", "layers"),
    [("", ()), ("0, -1", (0, -1)), ("0, 47-49", (0, 47, 48, 49)), (" 3;3 ", (3,)), ("-2,-1", (-2, -1))],
)
def test_layers(presets, text: str, layers: tuple[int, ...]) -> None:
    assert presets.parse_layers(text) == layers


@pytest.mark.parametrize("text", ["first", "1.5", "3-", "1-b"])
def test_layers_that_are_none(presets, text: str) -> None:
    with pytest.raises(ValueError, match=r'write for example "0, -1"'):
        presets.parse_layers(text)


def test_tile(presets) -> None:
    assert presets.parse_tile("auto") is None and presets.parse_tile("4 x 4 x 8") == (4, 4, 8)
    with pytest.raises(ValueError, match=r'write for example "4x4x8"'):
        presets.parse_tile("4x4")


@pytest.mark.parametrize(
    "page", ["ApplyDraftAttention.md", *(f"ApplyDraftAttention/{it}.md" for it in ("ja", "ko", "zh"))]
)
def test_the_help_says_how_many_steps_each_speed_computes(page: str, part) -> None:
    speeds = part("draftattn_core.run.speed").SPEEDS
    text = (PACK_ROOT / "web" / "docs" / page).read_text(encoding="utf-8")
    head = re.search(r"^\| [^|]+ \| `quality`[^|]* \| `balanced`[^|]* \| `fast`[^|]* \| `max`[^|]* \|$", text, re.M)
    assert head is not None
    densities = [float(found) for found in re.findall(r"[\d.]+", head[0])]
    assert densities == [speed.density for speed in speeds.values() if speed.density < 1.0]
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", text, re.M)
    assert [int(row[0]) for row in rows] == [4, 8, 10, 20, 30, 50]
    for steps, *computed in (map(int, row) for row in rows):
        assert computed == [len(speed.skip().planned_steps(steps)) for speed in speeds.values()], steps
