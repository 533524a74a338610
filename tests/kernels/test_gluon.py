"""The Gluon form of attend without a GPU: its source run by a machine of plain tensors, and what its binary says."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from draftattention.draftattn_core.backends.call_kind import CallKind
from draftattention.draftattn_core.backends.registry import backends
from draftattention.draftattn_core.backends.triton.gluon import GLUON
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout, build_tables
from draftattention.draftattn_core.method.policy import Policy, TailName
from draftattention.kernels import attend_gluon as module
from draftattention.kernels.attend_gluon import attend_gluon
from draftattention.kernels.types import AttendInputs
from tests.kernels.calls import run_call
from tests.kernels.gluon_machine import Emulated, Site, sites
from tests.kernels.launches import Launches
from tests.kernels.problems import LIMITS, Problem, lists_of, make_problem, poisoned_output, relative_error, truth_of
from tests.kernels.test_hopper import SHAPES
from tests.kernels.warp_groups import ProtocolError
from tools.aot import cases_gluon
from tools.aot.cases_hopper import TARGET, whole_case
from tools.aot.compile import Planned, compile_case, disassembly
from tools.aot.judge import judge
from tools.aot.sass import Loop, product_loops

# Products round nothing here but their operands: bfloat16 as on a GPU, not as in Triton's interpreter.
LIMIT = {torch.float16: LIMITS[torch.float16], torch.bfloat16: 4e-3}


DEFAULTS = {"q_block": 128, "k_block": 64, "dtype": torch.float16, "heads": 1}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Emulated:
    found = Emulated(module.gluon_kernel)
    monkeypatch.setattr(module, "gluon_kernel", found)
    return found


def problem_of(**case: Any) -> Problem:
    return make_problem(**{"grid": (3, 10, 17), **DEFAULTS, **case})


def run(problem: Problem, lse: Tensor | None = None) -> Tensor:
    request = problem.request
    out = poisoned_output(request)
    k, v = (x.index_select(2, request.tables.perm) for x in (request.k, request.v))
    rest = problem.geometry, lists_of(request.keep), problem.tail, request.key_bias, request.scale, True
    attend_gluon(AttendInputs(request.q, k, v, *rest), out, lse)
    return out


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"grid": (4, 8, 16), "density": 0.7},
        {"after": 90, "bias": "one", "tail": "mean", "batch": 2},
        {"before": 5, "after": 9, "bias": "per_batch", "batch": 2, "tail": "linear0", "scattered": True},
        {"before": 17, "tail": "linear1", "interleaved": True, "dim": 128},
        {"tail": "linear2", "before": 9, "dim": 128},
        {"tail": ("none", "linear2"), "after": 1, "heads": 2},
        {"tail": "linear1", "dtype": torch.bfloat16, "before": 3, "after": 70, "bias": "one", "k_block": 128},
        {"tail": "linear1", "grid": (5, 29, 29), "density": 0.03},
        {"tail": "linear1", "density": 0.0},
        {"tail": "linear1", "density": 1.0, "after": 4},
    ],
    ids=lambda case: "-".join(f"{key}={value}" for key, value in case.items()) or "plain",
)
def test_output_is_the_references(machine: Emulated, case: dict[str, Any]) -> None:
    problem = problem_of(**case)
    assert relative_error(run(problem), truth_of(problem.request)) < LIMIT[problem.request.q.dtype]


@pytest.mark.parametrize("whole", range(7))
def test_lists_of_every_length_are_walked_whole(machine: Emulated, whole: int) -> None:
    problem = problem_of(grid=(3, 10, 17), after=70, bias="one")
    request, geometry = problem.request, problem.geometry
    assert geometry.video_tokens // geometry.k_block == 7 and geometry.k_total == 10
    keep = torch.zeros_like(request.keep)
    keep[..., [5, 0, 3, 1, 6, 4][:whole]] = True
    keep[..., 7:] = whole % 3 == 1
    keep[:, :, geometry.q_video :] = True
    part = replace(problem, request=replace(request, keep=keep))
    truth = truth_of(part.request).nan_to_num()
    assert (run(part) - truth).norm() <= LIMIT[torch.float16] * truth.norm()


def test_lse_is_the_log_of_the_denominator_tail_included(machine: Emulated) -> None:
    problem = problem_of(tail="mean", batch=2)
    request, tail = problem.request, problem.request.tail
    assert tail is not None
    lse = torch.full((2, 1, problem.geometry.tokens), torch.nan)
    run(problem, lse)
    tables = request.tables
    q_block, k_block = tables.q.of_token[tables.inverse], tables.k.of_token[tables.inverse]
    logits = request.scale * request.q.double() @ request.k.double().transpose(-1, -2)
    logits = logits.masked_fill(~request.keep[:, :, q_block][..., k_block], -torch.inf)
    pooled = request.scale * request.q.double() @ tail.k_mean.half().double().transpose(-1, -2)
    pooled = (pooled + tail.log_weight[:, None]).masked_fill(request.keep[:, :, q_block, : tables.k.video], -torch.inf)
    expected = torch.cat([logits, pooled], -1).logsumexp(-1)
    assert torch.allclose(lse.double(), expected, rtol=0, atol=3e-6)


def test_a_row_without_keys_is_zero_and_its_lse_minus_infinity(machine: Emulated) -> None:
    problem = problem_of(density=0.0)
    lse = torch.full((1, 1, problem.geometry.tokens), torch.nan)
    assert not run(problem, lse).any()
    assert torch.equal(lse, torch.full_like(lse, -torch.inf))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_reaches_exactly_the_rows_that_attend_to_it(machine: Emulated, value: float) -> None:
    problem = problem_of(heads=2)
    tables = problem.request.tables
    # The first head's last block is short: what lies behind it in memory is the second head's first row.
    token = int(tables.perm[0])
    problem.request.v[0, 1, token, 3] = value
    out = run(problem)
    attends = problem.request.keep[0, 1, :, tables.k.of_token[tables.inverse[token]]]
    reached = torch.zeros_like(out, dtype=torch.bool)
    reached[0, 1, :, 3] = attends[tables.q.of_token[tables.inverse]]
    assert torch.equal(~out.isfinite(), reached)


@pytest.mark.parametrize("case", [{"tail": "linear1"}, {"tail": "linear2", "after": 70}, {"k_block": 128}], ids=str)
def test_every_order_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch, case: dict[str, Any]) -> None:
    problem, found = problem_of(density=0.8, **case), []
    for seed in range(4):
        machine = Emulated(module.gluon_kernel.kernel if seed else module.gluon_kernel, seed)
        monkeypatch.setattr(module, "gluon_kernel", machine)
        found.append(run(problem))
    assert all(torch.equal(out, found[0]) for out in found)
    # Scores of the next keys and sums of the last, or the tail's products with Q.
    assert machine.deepest == (3 if case.get("tail") == "linear2" else 2)


MEETINGS = ("wait", "arrive", "expect", "async_copy_global_to_shared", "warpgroup_mma_wait")


@pytest.mark.parametrize("site", sites(module.gluon_kernel, MEETINGS), ids=lambda site: f"{site[0]}-{site[1]}")
def test_every_meeting_is_needed_and_its_loss_is_seen(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    """So what the tests above see none of would not go unseen."""
    kernel = module.gluon_kernel
    # Every path of the kernel between them; as few slots as there may be, so that each is used again.
    cases = [{"tail": "linear2", "density": 0.9}, {"tail": "linear1", "density": 0.9}]
    for case in cases:
        problem = problem_of(after=70, **case)
        truth = truth_of(problem.request)
        for seed in range(6):
            monkeypatch.setattr(module, "gluon_kernel", Emulated(kernel, seed, site))
            monkeypatch.setattr(module, "SLOTS", {64: 2})
            try:
                if not relative_error(run(problem), truth) < LIMIT[torch.float16]:
                    return
            except ProtocolError:
                return
    pytest.fail(f"nobody misses it: {site}")


def test_the_binary_is_specialised_fits_and_keeps_to_its_registers() -> None:
    (planned,) = cases_gluon.representative_cases()
    result = compile_case(planned)
    assert judge(result).problems == ()
    assert result.warps == module.WARPS
    assert result.registers * 32 * result.warps <= 65536


def loops_of(**case: Any) -> tuple[Loop, ...]:
    return product_loops(disassembly(Planned(TARGET, cases_gluon.gluon_case(128, **case))))


@pytest.mark.parametrize("tail", ["none", "linear1"])
def test_sums_go_on_beside_the_softmax(tail: str) -> None:
    """In the machine's own code: what the assembler thinks unsafe it takes apart, and it moves waits."""
    loops = loops_of(tail=tail)
    assert all(loop.written_too_early() == () for loop in loops)
    beside = [loop for loop in loops if loop.counts["MUFU"] == 66]
    assert beside
    for loop in beside:
        found = Loop(loop.beside_products())
        # A weight for each of 64 scores a thread, and what two rows shrink by.
        assert found.counts["MUFU"] == 66 and found.counts["FMNMX"] >= 64 and not found.counts["HGMMA"]
        # Two products of eight instructions each, two fences, two waits: none is waited for by itself.
        assert (loop.counts["HGMMA"], loop.counts["WARPGROUP"]) == (16, 4)
        assert len(loop.lines) <= 480


def test_a_register_that_a_product_still_reads_is_seen() -> None:
    (loop,) = (loop for loop in loops_of(tail="linear1") if loop.counts["MUFU"] == 66)
    lines = list(loop.lines)
    at = next(i for i, line in enumerate(lines) if line.startswith("MUFU.EX2"))
    read = next(re.search(r"HGMMA\S* R\d+, R(\d+)", line) for line in reversed(lines) if "HGMMA" in line)
    assert read is not None
    lines[at] = f"MUFU.EX2 R{int(read[1]) + 3}, R1"
    assert Loop(tuple(lines)).written_too_early() == (lines[at],)


def test_products_that_are_waited_for_one_by_one_are_seen() -> None:
    pointer = product_loops(disassembly(Planned(TARGET, whole_case(128))))
    assert pointer and all(loop.beside_products() == () for loop in pointer)


def test_auto_never_takes_it_and_it_is_for_hopper() -> None:
    assert {backend.name: backend.automatic for backend in backends()}["triton_gluon"] is False
    kind = CallKind(torch.device("cpu"), torch.bfloat16, 128, 128, 64)
    assert GLUON.unfit(kind) == "its kernels run on Hopper GPUs (sm_90), not on cpu"


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"k_block": 32}, "128/32"), ({"q_block": 64}, "64/64"), ({"dim": 32}, "head size 32")],
)
def test_what_it_does_not_take_is_named(change: dict[str, int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        run(problem_of(**change))


@pytest.mark.parametrize("tail", ["none", "linear1"])
def test_one_binary_for_all_shapes_and_it_is_the_one_compiled_here(launches: Launches, tail: TailName) -> None:
    for grid, before, after, heads, batch in SHAPES:
        layout = Layout(TokenGrid(*grid), before, after)
        q, k, v = torch.empty(3, batch, layout.tokens, heads, 128, dtype=torch.bfloat16).transpose(2, 3)
        bias = torch.zeros(1, layout.extra)
        run_call(q, k, v, build_tables(layout), Policy(density=0.4, tail=tail), bias, backend=GLUON)
    ours = {key for name, key in launches.binaries if name == "gluon_kernel"}
    case = cases_gluon.gluon_case(128, tail=tail)
    seen = []
    for name, kind in case.signature.items():
        aligned = kind.startswith("*") or name in case.aligned
        seen.append((kind, case.constants[name] if kind == "constexpr" else "D" if aligned else None))
    assert {key.partition("[('")[2].partition(")][")[0] for key in ours} == {str(seen)[3:-2]}
    assert len(ours) == 1
