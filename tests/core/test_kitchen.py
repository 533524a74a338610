"""The backend on comfy-kitchen's `sol_attn`, by its eager form: what it computes, refuses, gives up and is trusted for.

The compiled kernel needs a GPU; what its self-check would make of faults is shown on the eager form with those faults.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.quality.peer import peer_keep_topk, pooled_scores
from draftattention.draftattn_core.attention import Attention, attend
from draftattention.draftattn_core.backends import registry
from draftattention.draftattn_core.backends.call_kind import CallKind, Variant
from draftattention.draftattn_core.backends.kitchen import package, self_check
from draftattention.draftattn_core.backends.kitchen.backend import KitchenBackend
from draftattention.draftattn_core.backends.nearest import Nearest
from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.backends.registry import choose_backend, nearest_served, passed_over, tails_served
from draftattention.draftattn_core.backends.request import BackendFailure
from draftattention.draftattn_core.backends.triton.trust import Trust
from draftattention.draftattn_core.doctor import diagnose as doctor
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout
from draftattention.draftattn_core.method.draft import make_draft
from draftattention.draftattn_core.method.policy import TAILS, Policy
from draftattention.draftattn_core.run.events import CallDone
from draftattention.draftattn_core.run.probe import probe_errors
from draftattention.draftattn_core.run.report import Position
from draftattention.draftattn_core.run.row_blocks import RowBlocks
from draftattention.draftattn_core.run.run import Run
from draftattention.draftattn_core.run.schedule import constant
from draftattention.draftattn_core.run.settings import Settings
from tests.core.cases import relative, smooth_qkv

pytest.importorskip("comfy_kitchen")

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
ROW = Policy(0.3, "row", "mean", spread=False)
KIND = CallKind(CPU, torch.float32, 128, 64, 64, (Variant("row", "mean"),))
ON_GPU = replace(KIND, device=GPU, dtype=torch.bfloat16)
# Its arithmetic is float32 whatever the type of the inputs; the rest is the rounding of the output.
LIMITS = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}


def layout(extra: tuple[int, int] = (5, 70), grid: tuple[int, int, int] = (5, 9, 14)) -> Layout:
    return Layout(TokenGrid(*grid), *extra, 64, 64)


def by_kitchen(
    qkv: tuple[Tensor, Tensor, Tensor], where: Layout, policy: Policy, bias: Tensor | None = None
) -> Attention:
    return attend(*qkv, where, policy, backend="kitchen", key_bias=bias)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize(
    ("grid", "extra"),
    [((5, 9, 14), (5, 70)), ((5, 9, 14), (0, 0)), ((4, 8, 12), (0, 3)), ((1, 1, 1), (0, 3)), ((2, 5, 7), (64, 0))],
    ids=str,
)
def test_it_computes_what_the_request_it_returns_defines(
    grid: tuple[int, int, int], extra: tuple[int, int], dim: int, dtype: torch.dtype
) -> None:
    """Odd grids, text on both sides with a mask, a batch of two, and heads of unequal density, tail and gain."""
    where = layout(extra, grid)
    q, k, v = smooth_qkv(where, batch=2, heads=5, dim=dim, dtype=dtype)
    bias = None
    if where.extra:
        bias = torch.linspace(-2, 0, 2 * where.extra).view(2, -1)
        bias[1, 0] = -math.inf
    tails = ("mean", "none", "mean", "mean", "mean")
    policy = Policy((0.2, 0.2, 1.0, 0.6, 0.0), "row", tails, (0.5, 0.3, 0.4, 0.0, -0.25), spread=False)
    found = by_kitchen((q * 2, k, v), where, policy, bias)
    assert found.backend == "kitchen" and found.request.shared_tail and found.out.dtype == dtype
    exact = attend_reference(
        replace(found.request, **{name: getattr(found.request, name).double() for name in ("q", "k", "v")})
    )
    assert relative(found.out, exact) < LIMITS[dtype]
    assert found.out.transpose(1, 2).is_contiguous()


def test_the_definition_of_a_shared_tail_is_that_of_its_formula() -> None:
    """Row by row and block by block, in float64: exp(s (q'.(k_j - k') + q.k')) for every skipped block j."""
    where = layout((2, 3), (2, 5, 13))
    q, k, v = smooth_qkv(where, heads=1, dim=8)
    found = by_kitchen(tuple(x.float() for x in (q, k, v)), where, replace(ROW, density=0.0))
    request = replace(found.request, q=q, k=k, v=v)
    expected, tables = attend_reference(request)[0, 0], request.tables
    (q, k, v), scale = (x[0, 0, tables.perm] for x in (q, k, v)), request.scale
    cuts = [slice(a, b) for a, b in zip(tables.k.bounds[:-1], tables.k.bounds[1:])]
    centre = torch.stack([k[cut].mean(0) for cut in cuts]).mean(0)
    assert not request.keep.all()
    for row in range(0, len(q), 7):
        block = next(number for number, cut in enumerate(cuts) if cut.start <= row < cut.stop)
        above, below = torch.zeros(8, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for number, cut in enumerate(cuts):
            if request.keep[0, 0, block, number]:
                weights = (scale * k[cut] @ q[row]).exp()
            else:
                mean = k[cut].mean(0)
                weights = (scale * (q[cuts[block]].mean(0) @ (mean - centre) + q[row] @ centre)).exp()
                weights = weights.expand(cut.stop - cut.start)
            above, below = above + weights @ v[cut], below + weights.sum()
        # The request's means are those of the float32 inputs.
        assert relative(expected[tables.perm[row]], above / below) < 1e-6


def test_its_selection_is_the_packages_own() -> None:
    where = layout((0, 0), (6, 16, 20))
    q, k, v = smooth_qkv(where, dim=64, dtype=torch.float32)
    found = by_kitchen((q, k, v), where, replace(ROW, density=0.25))
    draft = make_draft(q, k, found.request.tables, spread=False)
    blocks = found.request.tables.k.video
    assert torch.equal(found.request.keep, peer_keep_topk(pooled_scores(draft), round(0.25 * blocks) / blocks))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `sol_attn` is called with."""
    seen: list[dict[str, Any]] = []
    original = package.sol_attn()

    def counted(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
        seen.append({"q": q, **given})
        return original(q, k, v, **given)

    monkeypatch.setattr(package, "sol_attn", lambda: counted)
    return seen


def test_heads_of_one_budget_and_tail_share_a_call(calls: list[dict[str, Any]]) -> None:
    where = layout((0, 0))
    q, k, v = smooth_qkv(where, heads=5, dim=64, dtype=torch.float16)
    tails = ("mean", "mean", "mean", "none", "mean")
    by_kitchen((q, k, v), where, Policy((0.2, 0.5, 0.2, 0.2, 0.5), "row", tails, (0, 0, 0.5, 0, 0), spread=False))
    assert [(len(call["q"]), call["tail"], call["topk_ratio"]) for call in calls] == [
        (2, True, 0.2),
        (2, True, 0.5),
        (1, False, 0.2),
    ]
    assert calls[0]["key_bias"] is not None and calls[1]["key_bias"] is None
    assert all(call["q"].shape[2:] == (1, 128) and call["scale"] == 64**-0.5 for call in calls)


def test_a_call_is_cut_into_pieces_of_bounded_size(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = layout()
    q, k, v = smooth_qkv(where, heads=5, dim=64, dtype=torch.float32)
    whole = by_kitchen((q, k, v), where, ROW).out
    places = calls[0]["q"].shape[1]
    size = 4 * places * 128 * 4 + 24 * places**2
    monkeypatch.setattr("draftattention.draftattn_core.backends.kitchen.backend._PIECE_BYTES", 2 * size)
    assert relative(by_kitchen((q, k, v), where, ROW).out, whole) < 1e-6
    assert [len(call["q"]) for call in calls] == [5, 2, 2, 1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"q_block": 128}, "query and key blocks of 64 tokens, not 128/64"),
        ({"variants": (Variant("head", "mean"),)}, "by the rule 'row', not 'head'"),
        ({"variants": (Variant("row", "linear1"),)}, "the tails none and mean, not linear1"),
        ({"anchored": True}, "cannot keep the blocks of a frame"),
        ({"head_dim": 256}, "head sizes up to 128, not 256"),
        ({"dtype": torch.float64}, "does not take torch.float64"),
        ({"device": torch.device("mps")}, "on NVIDIA and AMD GPUs, not on mps"),
        ({"device": GPU}, "float16 and bfloat16, not torch.float32"),
        ({"device": GPU, "dtype": torch.bfloat16}, "no compiled sol_attn for this GPU"),
    ],
)
def test_what_it_cannot_serve_is_a_reason(changes: dict[str, Any], reason: str) -> None:
    assert reason in str(KitchenBackend(Trust("")).refuses(replace(KIND, **changes)))


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, "not installed"),
        (SimpleNamespace(), "has no sol_attn"),
        (SimpleNamespace(sol_attn=lambda q, k, v, scale: q, sol_attn_is_available=bool), "does not take sink_blocks"),
    ],
)
def test_a_missing_or_older_package_is_a_reason(monkeypatch: pytest.MonkeyPatch, found: object, reason: str) -> None:
    monkeypatch.setitem(sys.modules, "comfy_kitchen", found)
    package.missing.cache_clear()
    try:
        told = str(KitchenBackend(Trust("")).refuses(KIND))
        # A module that is None raises ModuleNotFoundError without a name of its own.
        assert reason in told or (found is None and "comfy-kitchen" in told)
    finally:
        package.missing.cache_clear()


def int8(x: Tensor, step: Tensor) -> Tensor:
    return (x / step.clamp_min(1e-12)).round().clamp(-127, 127) * step


def in_int8(q: Tensor, k: Tensor, v: Tensor, original: Callable[..., Tensor], **given: Any) -> Tensor:
    """`sol_attn` on what INT8 leaves: Q by row, centred K by block of 64, V by channel."""
    centre = k.float().mean(1, keepdim=True)
    centred = torch.cat([int8(x, x.abs().amax((1, 3), keepdim=True) / 127) for x in (k - centre).split(64, 1)], 1)
    rows = int8(q.float(), q.float().abs().amax(-1, keepdim=True) / 127)
    values = int8(v.float(), v.float().abs().amax(1, keepdim=True) / 127)
    return original(rows, centred + centre, values, **given).to(q.dtype)


def biased_sinks_only(q: Tensor, k: Tensor, v: Tensor, original: Callable[..., Tensor], **given: Any) -> Tensor:
    if given["key_bias"] is not None:
        start = 64 * given["sink_blocks"][0]
        given["key_bias"] = given["key_bias"].clone()
        given["key_bias"][:, :start] = 0.0
    return original(q, k, v, **given)


def other(**changes: Any) -> Callable[..., Tensor]:
    def wrong(q: Tensor, k: Tensor, v: Tensor, original: Callable[..., Tensor], **given: Any) -> Tensor:
        return original(q, k, v, **(given | changes))

    return wrong


def next_head(q: Tensor, k: Tensor, v: Tensor, original: Callable[..., Tensor], **given: Any) -> Tensor:
    return original(q, k, v, **given).roll(1, 1)


FAULTS = {
    "the scale is not ours": other(scale=None),
    "short blocks count as full": other(block_len=None),
    "skipped blocks are dropped": other(tail=False),
    "text sees some blocks only": other(sink_q=[0, 0]),
    "text is not always seen": other(sink_blocks=[0, 0]),
    "the mask has no say": other(key_bias=None),
    "more is selected": other(topk_ratio=0.6),
    "rows are off by one": next_head,
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[..., Tensor]], KitchenBackend]]:
    """Makes a backend whose compiled kernel is the eager form with a fault, on a CPU that has to be checked."""

    def make(fault: Callable[..., Tensor]) -> KitchenBackend:
        original = package.sol_attn()
        monkeypatch.setattr(package, "sol_attn", lambda: lambda q, k, v, **given: fault(q, k, v, original, **given))
        backend = KitchenBackend(Trust("sol_attn"))
        monkeypatch.setattr(backend, "under_test", lambda device: False)
        return backend

    yield make


@pytest.mark.parametrize("gained", [False, True])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("tail", ["none", "mean"])
def test_the_self_check_lets_int8_pass(gpu: Any, tail: Any, dim: int, gained: bool) -> None:
    kind = replace(KIND, head_dim=dim, dtype=torch.bfloat16, variants=(Variant("row", tail, True),), gained=gained)
    assert gpu(in_int8).refuses(kind) is None


@pytest.mark.parametrize("fault", FAULTS)
def test_the_self_check_refuses_a_kernel_with_a_fault(gpu: Any, fault: str) -> None:
    backend = gpu(FAULTS[fault])
    kind = replace(KIND, head_dim=64, variants=(Variant("row", "mean", True),))
    assert "is off by" in str(backend.refuses(kind))
    assert len(backend.trust.verdicts) == 1


def test_the_limit_of_the_self_check_lies_far_from_either_side(gpu: Any) -> None:
    kind = replace(KIND, head_dim=64, variants=(Variant("row", "mean", True),))
    call = self_check.small_call(kind, kind.variants[0], False)

    def error(form: Callable[..., Tensor]) -> float:
        return self_check.relative_error(*gpu(form).run(call))

    assert error(in_int8) < self_check.LIMIT / 4
    assert min(error(fault) for fault in FAULTS.values()) > 2 * self_check.LIMIT


def test_no_score_of_the_self_check_is_near_enough_to_a_threshold_for_int8_to_change_the_selection() -> None:
    for dim in (64, 128):
        call = self_check.small_call(replace(KIND, head_dim=dim), KIND.variants[0], False)
        blocks, scores = call.tables.k.video, call.scale * pooled_scores(call.draft)
        step = scores.abs().max() / 127
        for head, density in enumerate(call.heads.densities):
            wanted, ranked = round(density * blocks), scores[0, head].sort(-1, descending=True).values
            assert (ranked[:, wanted - 1] - ranked[:, wanted]).min() > step / 4


def test_gains_are_given_up_alone_where_keys_of_video_blocks_take_no_bias(gpu: Any) -> None:
    backend = gpu(biased_sinks_only)
    kind = replace(KIND, variants=(Variant("row", "mean", True),))
    assert backend.refuses(kind) is None
    assert "with a gain" in str(backend.refuses(replace(kind, gained=True)))
    near = backend.nearest(kind)
    assert near is not None and not near.gains and "tail gains" in near.lost
    settings = Settings(policy=Policy(tail_gain=0.5)).nearest(near)
    assert settings.policy.tail_gain == 0.0 and not settings.auto_gain


def test_a_kernel_that_fails_later_is_not_asked_again(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = gpu(in_int8)
    assert backend.refuses(KIND) is None
    where, (q, k, v) = layout(), smooth_qkv(layout(), dim=128, dtype=torch.float32)
    found = by_kitchen((q, k, v), where, ROW)

    def fails(*_: object, **__: object) -> Tensor:
        raise RuntimeError("CUDA error: invalid argument")

    monkeypatch.setattr(package, "sol_attn", lambda: fails)
    known = [
        replace(x, run=backend.run, refuses=backend.refuses) if x.name == "kitchen" else x for x in registry.backends()
    ]
    monkeypatch.setattr(registry, "backends", lambda: tuple(known))
    with pytest.raises(registry.NoBackendError, match="invalid argument"):
        by_kitchen((q, k, v), where, ROW)
    with pytest.raises(BackendFailure, match="selects by itself"):
        backend.attend(found.request)


def test_auto_never_takes_the_eager_form() -> None:
    assert choose_backend("auto", KIND).name == "torch"
    assert choose_backend("kitchen", KIND).name == "kitchen"
    assert nearest_served("auto", CallKind(CPU, torch.float32, 128, 128, 64)) is None


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU as far as the registry can tell, with comfy-kitchen's kernel and without Triton."""
    backend = KitchenBackend(Trust("sol_attn"))
    monkeypatch.setattr(package, "compiled_for", lambda device: True)
    monkeypatch.setattr(self_check, "check", lambda *given: None)
    missing = "Triton is not installed (on Windows: pip install triton-windows)"

    def known() -> Iterator[registry.Backend]:
        for found in originals:
            if found.name == "kitchen":
                yield replace(found, refuses=backend.refuses, nearest=backend.nearest)
            else:
                yield replace(found, refuses=lambda kind: missing) if found.name in ("triton", "flex") else found

    originals = registry.backends()
    monkeypatch.setattr(registry, "backends", lambda: tuple(known()))


@pytest.mark.usefixtures("windows")
def test_auto_takes_it_where_triton_cannot_run_and_says_what_it_gives_up() -> None:
    kind = replace(ON_GPU, q_block=128, variants=(Variant("head", "linear1", True),))
    near = nearest_served("auto", kind)
    assert near is not None and near.gains
    assert near.kind == replace(ON_GPU, variants=(Variant("row", "mean", True),))
    assert choose_backend("auto", near.kind).name == "kitchen"
    assert choose_backend("auto", kind).name == "torch"
    for lost in ("linear term", "budgets that the rows of a head share", "128/64", "each query", "16-bit"):
        assert lost in str(near)
    assert "not the faster triton: Triton is not installed" in str(passed_over("kitchen", kind))
    assert tails_served("kitchen", near.kind, TAILS) == ("none", "mean")


@pytest.mark.usefixtures("windows")
def test_it_takes_the_place_of_no_other_method_and_of_nothing_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("draft", "top_p", "svg"):
        assert nearest_served("auto", replace(ON_GPU, variants=(Variant(method, "none", False),))) is None
    assert nearest_served("auto", replace(ON_GPU, anchored=True)) is None
    assert nearest_served("torch", replace(ON_GPU, q_block=128)) is None
    known = [replace(x, refuses=lambda kind: None) if x.name == "triton" else x for x in registry.backends()]
    monkeypatch.setattr(registry, "backends", lambda: tuple(known))
    assert nearest_served("auto", replace(ON_GPU, q_block=128)) is None


def test_the_nearest_policy_keeps_what_it_can() -> None:
    near = Nearest("kitchen", replace(KIND, variants=(Variant("row", "none"), Variant("row", "mean"))), True, "")
    asked = Policy((0.1, 0.2, 0.3), "head", ("none", "linear2", "mean"), (0.0, 0.5, 0.1), floor=0.2)
    assert near.policy(asked) == replace(asked, method="row", tail=("none", "mean", "mean"), spread=False)
    settings = Settings(policy=replace(asked, density=0.2), tile=(1, 8, 16), bits="8").nearest(near)
    assert (settings.q_block, settings.k_block, settings.tile, settings.bits) == (64, 64, None, "16")
    assert Settings(q_block=64, tile=(1, 8, 8)).nearest(near).tile == (1, 8, 8)


def served(settings: Settings, heads: int = 2) -> tuple[Run, list[Attention]]:
    """A run of one sparse call, and what the core made of it."""
    run, found = Run(settings), []
    run.events.subscribe(CallDone, lambda event: found.append(event.result))
    q, k, v = smooth_qkv(layout(), heads=heads, dim=64, dtype=torch.float32)
    run.calls.attention(
        q * 3, k * 2, v, grid=layout().grid, position=Position(0, 0.5, 0, 1), dense=lambda: q.clone(),
        extra_before=5, extra_after=70,
    )  # fmt: skip
    return run, found


def test_a_run_that_names_it_is_served_by_its_nearest_and_says_so() -> None:
    run, (result,) = served(Settings(schedule=constant(0.3), backend="kitchen"))
    assert run.report.calls_sparse == 1 and not run.report.calls_dense()
    assert result.backend == "kitchen" and result.request.tables.layout == layout()
    nearest = run.calls.settings
    assert (nearest.q_block, nearest.policy.method, nearest.policy.tail) == (64, "row", "mean")
    assert sum("backend kitchen serves this run without the linear term" in note for note in run.report.notes) == 1


def test_gains_are_fitted_to_the_tail_that_a_query_block_shares() -> None:
    run, (result,) = served(Settings(schedule=constant(0.2), backend="kitchen", auto_tail=True))
    assert tuple(run.report.tail_errors[0]) == ("none", "mean")
    plain = probe_errors(replace(result.request, tail=None), tails=("mean",), gains=True)
    other_tail = probe_errors(replace(result.request, shared_tail=False), tails=("mean",), gains=True)
    assert not torch.equal(plain.errors["mean"], other_tail.errors["mean"])
    fitted = attend(
        result.request.q, result.request.k, result.request.v, layout(),
        replace(ROW, density=0.2, tail_gain=tuple(plain.gains["mean"].tolist())), backend="kitchen",
    )  # fmt: skip
    measured = probe_errors(fitted.request, fitted.out, tails=("mean",))
    torch.testing.assert_close(measured.errors["output"], plain.fitted["mean"], rtol=1e-4, atol=0)


def test_error_curves_split_rows_as_it_computes_them() -> None:
    where = layout()
    q, k, v = smooth_qkv(where, dim=64, dtype=torch.float32)
    found = by_kitchen((q * 3, k * 2, v), where, ROW)
    tables, positions = found.request.tables, torch.arange(0, where.grid.tokens, 29)
    rows = RowBlocks.of(found.request, positions)
    split = rows.split(found.request.keep[:, :, rows.q_block], found.request.tail)
    assert relative(split.output(), found.out[:, :, tables.perm[positions]]) < 2e-6


def test_budgets_by_error_run_on_it() -> None:
    run, (result,) = served(Settings(schedule=constant(0.3), backend="kitchen", budgets="error"), heads=4)
    assert run.report.calls_sparse == 1 and result.backend == "kitchen" and not run.failures.stood_aside


def test_the_doctor_checks_it_by_its_nearest_call(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [replace(x, not_automatic_on=()) for x in registry.backends() if x.name == "kitchen"]
    monkeypatch.setattr(doctor, "backends", lambda: tuple(known))
    diagnosis = doctor.diagnose(["cpu"])
    assert diagnosis.works and all(check.right and check.error < 1e-2 for check in diagnosis.checks)
    assert "`auto` takes kitchen on cpu, without the linear term" in diagnosis.text()
