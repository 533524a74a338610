"""The kernels compiled for GPUs that are not here: none spills unlisted, all fit, all use the units they should."""

from __future__ import annotations

import importlib.util
import linecache
import types
from collections import Counter
from dataclasses import astuple, replace
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

import triton

from draftattention.kernels.configs import ATTEND, attend_config
from tools.aot import __main__ as aot
from tools.aot import summary
from tools.aot.cases import attend_case
from tools.aot.compile import Case, Compiled, Planned, compile_case, count_in_loops, fingerprint
from tools.aot.judge import judge, load_known
from tools.aot.plan import all_cases, representative_cases
from tools.aot.store import Store

ROOT = Path(__file__).resolve().parents[2]
needs_a_list = pytest.mark.skipif(
    triton.__version__ not in load_known(), reason=f"no stack is listed for Triton {triton.__version__}"
)


@needs_a_list
@pytest.mark.parametrize(
    "planned", representative_cases(), ids=lambda planned: f"{planned.target}: {planned.case.name}"
)
def test_what_ships_fits_and_has_the_stack_that_is_listed(planned: Planned) -> None:
    listed = load_known()[triton.__version__].get(planned.target, {}).get(planned.case.name, 0)
    result = compile_case(planned)
    assert not judge(result, listed).problems
    assert result.registers > 8


def test_every_name_occurs_once_per_target() -> None:
    names = Counter((planned.target, planned.case.name) for planned in all_cases())
    assert not [name for name, count in names.items() if count > 1]


@needs_a_list
def test_stack_is_listed_only_for_cases_that_there_are() -> None:
    listed = {(target, name) for target, names in load_known()[triton.__version__].items() for name in names}
    assert listed <= {(planned.target, planned.case.name) for planned in all_cases()}


class TestFaultsAreSeen:
    def test_a_configuration_that_does_not_fit(self) -> None:
        greedy = replace(attend_config("sm_86", 64, 0), stages=9)
        result = compile_case(Planned("sm_86", attend_case(greedy, 64, tail="none")))
        assert judge(result).problems == (f"{result.shared} B of shared memory, the limit is 101376",)
        assert result.shared > 101_376

    def test_a_configuration_that_spills(self) -> None:
        crowded = replace(attend_config("sm_80", 64, 0), block_n=128, warps=4, stages=2)
        result = compile_case(Planned("sm_80", attend_case(crowded, 64, tail="none", k_block=128)))
        assert judge(result).problems == (f"{result.stack} B of stack per thread",)
        assert result.stack > 100
        assert result.loop_stack > 10

    def test_stack_is_counted_in_loops_only(self) -> None:
        code = "STL R2\n.L_x_1:\nLDL R3\n@P0 BRA `(.L_x_2)\nSTL R4\n.L_x_2:\n@!P1 BRA `(.L_x_1)\nLDL R5"
        assert count_in_loops(code, r"\b(STL|LDL)\b") == 2
        amd = ".LBB0_1:\n\tscratch_load_b32 v0, off, off\n\ts_cbranch_scc1 .LBB0_1\n\tscratch_store_b32 off, v0\n"
        assert count_in_loops(amd, r"\bscratch_(load|store)") == 1

    def test_products_that_miss_the_matrix_units(self) -> None:
        config = replace(attend_config("sm_86", 64, 0), block_n=16, stages=1)
        result = compile_case(Planned("sm_86", attend_case(config, 64, tail="none", dtype="fp32")))
        assert "no HMMA instruction" in judge(result).problems

    def test_a_kernel_that_does_not_compile(self) -> None:
        config = replace(attend_config("sm_86", 64, 0), block_n=48)
        result = compile_case(Planned("sm_86", attend_case(config, 64, tail="none")))
        assert judge(result).problems[0].startswith("does not compile: ")

    def test_lost_warp_specialisation(self) -> None:
        result = Compiled("sm_90", "x", 168, instructions={"HGMMA": 8, "UTMALDG": 4}, wants=("HGMMA", "USETMAXREG"))
        assert judge(result).problems == ("no USETMAXREG instruction",)

    @pytest.mark.parametrize(
        ("stack", "listed", "fine"), [(16, 16, True), (24, 16, False), (8, 16, False), (0, 16, False)]
    )
    def test_stack_that_is_not_what_is_listed(self, stack: int, listed: int, fine: bool) -> None:
        verdict = judge(Compiled("gfx1100", "x", 256, stack=stack), listed)
        assert (not verdict.problems) is fine
        assert verdict.known == (listed if fine else 0)


class TestResultsOnDisk:
    def test_a_stopped_run_keeps_what_it_had(self, tmp_path: Path) -> None:
        first, second = all_cases()[:2]
        result = Compiled(first.target, first.case.name, 40, 8, 1024, 4, {"HMMA": 3}, ("HMMA",))
        store = Store(tmp_path / "results.jsonl")
        store.add(first, result)
        store.close()
        with store.path.open("a", encoding="utf-8") as file:
            file.write('{"fingerprint": "12')
        again = Store(store.path)
        assert again.get(first) == result
        assert again.get(second) is None

    def test_a_change_of_the_code_is_noticed_and_a_comment_is_not(self, tmp_path: Path) -> None:
        source = "\n".join(
            [
                "import triton, triton.language as tl",
                "@triton.jit",
                "def inner(x):",
                "    return x + 1",
                "@triton.jit",
                "def outer(x_ptr):",
                "    tl.store(x_ptr, inner(tl.load(x_ptr)))",
            ]
        )

        def of(text: str, name: str) -> str:
            path = tmp_path / f"{name}.py"
            path.write_text(text, encoding="utf-8")
            linecache.checkcache()
            spec = importlib.util.spec_from_file_location("some_kernels", path)
            assert spec is not None and spec.loader is not None
            module: types.ModuleType = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return fingerprint(Planned("sm_80", Case("outer", module.outer, {"x_ptr": "*fp32"}, {}, 4, 3)))

        plain = of(source, "plain")
        assert of("# first\n\n" + source.replace("return x + 1", "return x + 1  # one more"), "commented") == plain
        assert of(source.replace("x + 1", "x + 2"), "changed") != plain

    def test_a_change_of_the_case_is_noticed(self) -> None:
        case = attend_case(attend_config("sm_86", 64, 1), 64)
        plain = fingerprint(Planned("sm_86", case))
        changed = (replace(case, warps=4), replace(case, stages=2), replace(case, aligned=frozenset()))
        assert (
            len({plain, fingerprint(Planned("sm_89", case)), *(fingerprint(Planned("sm_86", x)) for x in changed)}) == 5
        )


class TestSummary:
    HEAD = ("Triton", "commit", "cases")
    PAGE = "# Title\n\n| Triton | commit | cases |\n|---|---|---|\n| 3.6.0 | abc | 7 |\n| 3.10.0 | abc | 8 |\n\nEnd.\n"

    def test_a_row_takes_the_place_of_its_version_and_no_other(self) -> None:
        changed = summary.with_row(self.PAGE, self.HEAD, ("3.6.0", "def", 9))
        assert changed == self.PAGE.replace("| 3.6.0 | abc | 7 |", "| 3.6.0 | def | 9 |")

    def test_a_new_version_stands_in_its_order(self) -> None:
        changed = summary.with_row(self.PAGE, self.HEAD, ("3.9.0", "def", 9))
        assert changed == self.PAGE.replace("| 3.10.0", "| 3.9.0 | def | 9 |\n| 3.10.0")

    def test_the_page_has_a_table_for_every_kind_of_row(self) -> None:
        page = summary.PAGE.read_text(encoding="utf-8")
        for head in (summary.TOTALS, summary.TARGETS, summary.INTERPRETED):
            assert "| 99.0 | x |" in summary.with_row(page, head, ("99.0", "x"))

    def test_kernels_that_no_commit_has_are_not_published(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(summary, "_git", lambda *words: " M kernels/select.py" if "status" in words else "abc")
        with pytest.raises(SystemExit) as stopped:
            aot.main(["--all", "--publish"])
        assert stopped.value.code == aot.BAD_INPUT

    def test_a_part_is_not_published(self) -> None:
        for part in ([], ["--all", "--kernel", "select"], ["--interpret", "--cases", "far"]):
            with pytest.raises(SystemExit):
                aot.main([*part, "--publish"])

    def test_stack_that_is_not_listed_is_a_problem_in_the_figures(self) -> None:
        found = [Compiled("sm_80", "plain", 40), Compiled("gfx1100", "not listed", 256, stack=24, loop_stack=2)]
        assert summary.totals("3.7.1", found) == (1, 0, 0, 24, 1)


def test_the_documented_configurations_are_those_that_ship() -> None:
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    documented = [line for line in page.splitlines() if line.startswith(("| sm_", "| gfx"))]
    expected = [(target, dim, *astuple(config)) for (target, dim), config in ATTEND.items()]
    assert documented == ["| " + " | ".join(map(str, row)) + " |" for row in expected]
