"""Parts of the ComfyUI adapter that need no ComfyUI: progress from sigma, masks, published layouts, the chain."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


def flow(shift: float) -> Any:
    """ComfyUI's percent_to_sigma of flow models."""

    def to_sigma(percent: float) -> float:
        t = 1.0 - percent
        return 1.0 if percent <= 0 else 0.0 if percent >= 1 else shift * t / (1 + (shift - 1) * t)

    return to_sigma


def eps(percent: float) -> float:
    """One of a model whose largest sigma is 14.6, as ComfyUI writes it: far out of range at its ends."""
    return 999999999.9 if percent <= 0 else 0.0 if percent >= 1 else 14.6 * (1 - percent) ** 3 + 0.03


@pytest.mark.parametrize("to_sigma", [flow(1.0), flow(3.0), flow(8.0), eps])
def test_progress_is_the_inverse_of_percent_to_sigma(part, to_sigma) -> None:
    trajectory = part("nodes.host.runs").Trajectory(to_sigma, ())
    for percent in (0.001, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999):
        assert trajectory.progress(to_sigma(percent)) == pytest.approx(percent, abs=1e-6)
    assert trajectory.progress(0.0) == pytest.approx(1.0, abs=1e-6)
    assert trajectory.progress(to_sigma(0.0)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("first", "last"), [(0, 20), (0, 7), (7, 20), (19, 20)])
def test_a_part_of_the_sampling_tells_the_steps_of_the_whole(part, first: int, last: int) -> None:
    sigmas = tuple(flow(5.0)(i / 20) for i in range(21))
    assert part("nodes.host.runs").Trajectory(flow(5.0), sigmas[first : last + 1]).whole_steps() == 20


class Waits(TorchDispatchMode):
    """Counts how often a number is read from a tensor, which on a GPU waits for all that is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # In inference mode the outer of the two is seen, else the inner.
        self.count += function in (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("inference", [False, True])
def test_the_noise_level_is_read_once_for_all_conditions_that_are_called_with_it(part, inference: bool) -> None:
    runs = part("nodes.host.runs")
    run = SimpleNamespace(step_of=lambda sigma: 0)
    sampling = runs.Sampling(run, runs.Trajectory(flow(5.0), (1.0, 0.5, 0.0)), None)
    with torch.inference_mode(inference), Waits() as waits:
        level = torch.tensor([0.5])
        assert [sampling.moment({"sigmas": level}).sigma for _ in range(3)] == [0.5] * 3 and waits.count == 1
        assert sampling.moment({"sigmas": torch.tensor([0.25])}).sigma == 0.25 and waits.count == 2
        assert sampling.moment({"sigmas": level}).sigma == 0.5
    if not inference:
        # One tensor that a sampler writes over.
        assert sampling.moment({"sigmas": level.fill_(0.125)}).sigma == 0.125


def test_a_condition_asked_for_again_is_another_branch_if_a_switch_or_what_it_brings_along_differs(part) -> None:
    branches = part("nodes.host.evaluations")._branches

    def key(options: dict[str, Any], **brought: Any) -> Any:
        named = {"cond_or_uncond": [0], "uuids": ["a"], **options}
        return branches(None, torch.zeros(1, 4, 1, 2, 2), [0], named, (), brought)[0].key

    own = key({}, c_crossattn=1, ref_audio=2)
    # A step's number, latents and what others keep there are no other condition.
    assert key({"step": 3, "sample_sigmas": torch.ones(2), "holder": object()}, c_crossattn=7, ref_audio=8) == own
    others = [
        key({}, c_crossattn=1),
        key({}, c_crossattn=1, ref_audio=None, hint=3),
        key({"a2v_cross_attn": False}, c_crossattn=1, ref_audio=2),
        key({"stg_self_attn_blocks": frozenset({29})}, c_crossattn=1, ref_audio=2),
        key({"stg_self_attn_blocks": frozenset({14, 29})}, c_crossattn=1, ref_audio=2),
    ]
    assert len({own, *others}) == 1 + len(others)


@pytest.fixture
def tokens(part):
    layouts, grid = part("nodes.host.layouts"), part("draftattn_core.geometry.grid").TokenGrid(1, 2, 2)
    return layouts.Tokens(grid, 2, 1)


def test_a_text_mask_becomes_a_bias_on_the_extra_tokens(part, tokens) -> None:
    key_bias = part("nodes.host.calls").key_bias
    added = torch.tensor([[[0.0, -9.0, 0.0, 0.0, 0.0, 0.0, -7.0]]])
    assert key_bias(added, tokens, 2, torch.float32).tolist() == [[0.0, -9.0, -7.0]]
    kept = torch.tensor([[[True, False, True, True, True, True, True]]])
    assert key_bias(kept, tokens, 2, torch.float32).tolist() == [[0.0, -torch.inf, 0.0]]
    per_batch = torch.zeros(2, 1, 1, 7)
    per_batch[1, ..., 0] = -5.0
    assert key_bias(per_batch, tokens, 2, torch.float32).tolist() == [[0.0, 0.0, 0.0], [-5.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    "mask",
    [
        torch.tensor([[[0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0]]]),
        torch.zeros(1, 1, 6),
        torch.zeros(1, 7, 7),
        torch.zeros(3, 1, 7),
        torch.zeros(2, 7),
    ],
    ids=["on a video token", "of another length", "by row", "of another batch", "by row, flat"],
)
def test_a_mask_that_cannot_be_a_bias(part, tokens, mask: torch.Tensor) -> None:
    assert part("nodes.host.calls").key_bias(mask, tokens, 2, torch.float32) is None


@pytest.fixture
def classified(part, tokens):
    """What a call of so many queries and keys is taken for, in a model call that brings a text of 9 tokens along."""
    calls, runs = part("nodes.host.calls"), part("nodes.host.runs")

    def classify(queries: int, keys: int, model: Any = None, mask: torch.Tensor | None = None, layout: Any = tokens):
        model = model or runs.ModelCall(None, layout, frozenset({9}), 0, 0.0, "")
        q, k = torch.zeros(1, queries, 8), torch.zeros(1, keys, 8)
        return calls.classify(model, calls.HostCall(q, k, k, 2, (), {"mask": mask}), {})

    return classify


def test_every_token_must_be_accounted_for(classified) -> None:
    assert classified(7, 7).reason is None
    for count in (6, 8):
        place = classified(count, count)
        assert place.reason.value == "tokens not accounted for" and place.tokens is None
        assert f"{count} tokens where 7 were expected" in place.explanation
    assert classified(9, 9).reason.value == "not self-attention", "the text among itself"
    assert classified(7, 9).reason.value == classified(9, 7).reason.value == "not self-attention"


def test_a_self_attention_in_parts_is_one_layer_and_dense_with_the_reason(part, classified, tokens) -> None:
    model = part("nodes.host.runs").ModelCall(None, tokens, frozenset({9}), 0, 0.0, "")
    parts = [classified(4, 7, model, torch.zeros(1, 1, 1, 7)), classified(3, 7, model, torch.zeros(1, 1, 3, 7))]
    parts += [classified(4, 7, model), classified(3, 12, model)]
    assert [place.reason.value for place in parts] == ["mask"] * 2 + ["tokens not accounted for"] * 2
    assert [place.position.layer for place in parts] == [0, 0, 1, 1]
    assert "masks a part" in parts[0].explanation and "4 queries to 7 keys" in parts[2].explanation
    assert classified(4, 6).reason.value == "not self-attention", "too few keys for a part of the video"


def test_one_timestep_per_token_is_not_a_text(part) -> None:
    lengths = part("nodes.host.layouts").other_lengths
    video, text = torch.zeros(1, 4, 1, 2, 2), torch.zeros(1, 9, 8)
    assert lengths({"x": video, "timestep": torch.zeros(1, 4, 1), "context": text}) == {9}
    audio = {"x": [video, torch.zeros(1, 8, 6, 16)], "context": text}
    assert lengths(audio) == {9, 6}
    assert lengths({**audio, "ref_audio": {"tokens": torch.zeros(1, 4, 128)}}) == {9, 6, 10}


def test_a_published_grid_goes_before_the_derived_one(part, tokens) -> None:
    published = part("nodes.host.calls").with_published(tokens, {"grid_sizes": torch.Size([2, 1, 3])})
    assert published.grid.as_tuple() == (2, 1, 3) and (published.before, published.after) == (2, 1)


def test_a_published_order_that_contradicts_ours_is_not_overruled(part) -> None:
    layouts, calls, grid = (
        part("nodes.host.layouts"),
        part("nodes.host.calls"),
        part("draftattn_core.geometry.grid").TokenGrid(1, 2, 2),
    )
    text_first, text_last = layouts.Tokens(grid, 3, 0), layouts.Tokens(grid, 0, 3)
    assert calls.with_published(text_first, {"img_slice": [3, 7]}) is text_first
    assert isinstance(calls.with_published(text_last, {"img_slice": [3, 7]}), layouts.NoLayout)
    unknown = layouts.NoLayout("unknown token grid", "unknown", candidate=text_first)
    assert calls.with_published(unknown, {}) is unknown
    assert calls.with_published(unknown, {}, image=(3, 7)) is text_first
    assert calls.with_published(unknown, {}, image=(4, 8)) is unknown


def test_the_chain_puts_us_first_and_only_once(part) -> None:
    chain = part("nodes.host.chain")
    options: dict[str, Any] = {chain.OVERRIDE: lambda func, x: ["foreign", *func(x)]}
    foreign = options[chain.OVERRIDE]

    def serve(dense, x):
        return ["ours", *dense()]

    assert chain.install(options, serve) is foreign
    assert options[chain.OVERRIDE](lambda x: [x], 1) == ["ours", "foreign", 1]
    first = options[chain.OVERRIDE]
    assert chain.install(options, serve) is first
    assert options[chain.OVERRIDE](lambda x: [x], 1) == ["ours", "foreign", 1]
    chain.restore(options, first)
    assert options[chain.OVERRIDE] is first
    chain.restore(options, None)
    assert options == {}


def test_what_a_run_waits_for_is_shown_under_the_node(part) -> None:
    told: list[str] = []
    events = part("draftattn_core.run.events")
    channel = events.Events()
    end = part("nodes.host.status").show_status(channel, told.append)
    channel.emit(events.Waiting("kernels are compiled"))
    end()
    channel.emit(events.Waiting("of another run"))
    assert told == ["kernels are compiled"]


@pytest.mark.parametrize("replaced", ["forward", "attn_op"])
def test_what_raylight_puts_into_a_models_modules_is_found_by_where_it_comes_from(part, replaced) -> None:
    network = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
    for module, home in zip(network, ("raylight.diffusion_models.wan.xdit_context_parallel", "rayfish.parallel")):
        function = lambda x: x  # noqa: E731
        function.__module__ = home
        setattr(module, replaced, function)
    found = part("nodes.host.raylight").attention_of_raylight(network)
    assert found == ("0 (raylight, over several GPUs)",)
