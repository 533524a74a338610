"""The groups of warps that the compiler made of the Hopper kernels never wait for ever and read the tiles they should.

There is no GPU here to see it on: the compiler's own text is run instead, in many orders (`warp_groups.py`).
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections import Counter
from dataclasses import replace

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

import triton

from tests.kernels.warp_groups import ProtocolError, run_program
from tools.aot.cases_hopper import TARGET, edge_case, tail_case, whole_case
from tools.aot.compile import TARGETS, Case

CASES = {
    "edges": (edge_case(128), "q k slot v", ""),
    "whole, pairs of 64": (whole_case(128), "q k q k v v", ""),
    "whole, by 128": (whole_case(128, k_block=128), "q k v", ""),
    "tail linear1": (tail_case(128), "q k v q u w", "q cov"),
    "tail linear2": (tail_case(64, tail="linear2"), "q k v q u w q u w", "q cov"),
}


@functools.cache
def text_of(name: str) -> str:
    case: Case = CASES[name][0]
    options = {"num_warps": case.warps, "num_stages": case.stages}
    return str(triton.compile(case.source(), target=TARGETS[TARGET], options=options).asm["ttgir"])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("steps", [0, 1, 2, 5, 17])
def test_every_group_reads_the_tiles_of_its_step_and_its_half_of_q(name: str, steps: int) -> None:
    _, in_loop, behind = CASES[name]
    for seed in range(5):
        machine = run_program(text_of(name), steps, seed)
        assert not machine.copies
        for group, first_row in (("partition0", 0), ("partition1", 64)):
            reads = machine.reads.get(group, [])
            for step in range(-1, steps):
                seen = [read.load for read in reads if read.step == step]
                wanted = (behind if step < 0 else in_loop).split()
                assert Counter(load.descriptor.split("_")[0] for load in seen) == Counter(wanted)
                for load in seen:
                    whole = load.descriptor.startswith(("q_", "cov_"))
                    assert load.step == (-1 if whole else step)
                    assert load.row == first_row or not load.descriptor.startswith("q_")


MEETINGS = re.compile(
    r"^ *ttng\.(wait_barrier|arrive_barrier|barrier_expect|async_tma_copy_global_to_local) .*\n", re.M
)


def test_every_operation_is_needed_and_its_loss_is_seen() -> None:
    """So what the test above sees none of would not go unseen."""
    text = text_of("whole, pairs of 64")
    start = text.index("ttg.warp_specialize")
    unseen = []
    for found in list(MEETINGS.finditer(text, start)):
        broken = text[: found.start()] + text[found.end() :]
        try:
            for seed in range(30):
                run_program(broken, 9, seed)
        except ProtocolError:
            continue
        unseen.append(found[1])
    # Q's tiles are free before they are filled for the only time, and nobody waits for their release.
    assert unseen == ["wait_barrier", "wait_barrier", "arrive_barrier", "arrive_barrier"]


def test_a_kernel_that_is_not_specialised_is_not_taken_for_one() -> None:
    case = replace(CASES["whole, pairs of 64"][0], stages=1)
    case = replace(case, constants={**case.constants, "STAGES": 1})
    options = {"num_warps": case.warps, "num_stages": case.stages}
    plain = triton.compile(case.source(), target=TARGETS[TARGET], options=options).asm["ttgir"]
    with pytest.raises(ProtocolError, match="not specialised"):
        run_program(plain, 3, 0)
