"""``python run.py bench aot``: compile the kernels for GPUs that are not here and check what they would need there.

Without --all a representative subset; with it every kernel in every shipped configuration for every target. That
takes the better part of an hour per version of Triton on one core; a run that was stopped goes on where it was. Its
results go to outputs/aot, which is not committed; --publish puts its figures in short, with the commit they are of,
into docs/kernels-aot.md. Exit code 1 if something has stack that is not listed, does not fit, or lacks instructions
it should have.

With --triton, and with --interpret alone, the interpreted tests of the kernels run too, by that Triton's interpreter;
one that fails is exit code 1 as well.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time

import triton
from tqdm import tqdm

from tools.aot.compile import TARGETS, Compiled, Planned
from tools.aot.interpret import files, interpret, unfit
from tools.aot.judge import judge, load_known, save_known
from tools.aot.plan import all_cases, representative_cases
from tools.aot.pool import compile_all
from tools.aot.store import work_store
from tools.aot.summary import NotCommittedError, commit, publish, publish_interpreted, write_full
from tools.aot.triton import InstallError, run_with

OK, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench aot", description="Compile the GPU kernels without a GPU.")
    parser.add_argument("--all", action="store_true", help="everything that is shipped")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this target (may be repeated)")
    parser.add_argument("--kernel", default="", help="only cases whose name contains this")
    parser.add_argument(
        "--triton",
        action="append",
        metavar="VERSION",
        help="with this Triton, installed beside the one that is here (may be repeated)",
    )
    parser.add_argument("--interpret", action="store_true", help="compile nothing, run the interpreted tests")
    parser.add_argument("--cases", default="", help="only files of interpreted tests whose name contains this")
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile or interpret")
    parser.add_argument("--fresh", action="store_true", help="compile again what is known from earlier runs")
    parser.add_argument("--accept", action="store_true", help="list the stack that was found as known")
    parser.add_argument("--publish", action="store_true", help="write the figures into docs/kernels-aot.md")
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.jobs < 1:
        parser.error("--jobs needs at least 1")
    if options.cases and not files(options.cases):
        parser.error(f"no file of interpreted tests has {options.cases!r} in its name")
    filtered = bool(options.target or options.kernel)
    compiles_all = options.all and not filtered and not options.interpret
    # Another Triton is tried in both ways, unless a part of one way is asked for.
    interprets = options.interpret or (bool(options.triton or options.inner) and not filtered)
    if options.accept and not compiles_all:
        parser.error("--accept goes with a whole run: --all without --target and --kernel")
    if options.publish and (options.cases or not (compiles_all or options.interpret)):
        parser.error("--publish goes with a whole run: --all without --target and --kernel, or all interpreted tests")
    try:
        made_from = commit() if options.publish else None
        if options.triton:
            passed = _without(sys.argv[1:] if argv is None else argv, "--triton")
            return max(run_with(version, [*passed, "--inner"]) for version in options.triton)
    except (InstallError, NotCommittedError) as error:
        parser.exit(BAD_INPUT, f"{error}\n")
    code = OK if options.interpret else run(options, made_from)
    if interprets and code != STOPPED:
        code = max(code, run_interpreted(options.cases, options.jobs, made_from))
    return code


def run(options: argparse.Namespace, made_from: str | None = None) -> int:
    """Compile what was chosen with the Triton that is here, report, and return the exit code."""
    plan = [
        planned
        for planned in (all_cases() if options.all else representative_cases())
        if (not options.target or planned.target in options.target) and options.kernel in planned.case.name
    ]
    start = time.monotonic()
    try:
        results = compile_plan(plan, options.jobs, options.fresh)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return STOPPED
    if options.accept:
        save_known(triton.__version__, results)
    failed = report(results)
    print(
        f"Triton {triton.__version__}: {len(results)} cases in {time.monotonic() - start:.0f} s, "
        f"{failed} with problems, {sum(result.stack > 0 for result in results)} with stack"
    )
    if options.all:
        print(f"wrote {write_full(triton.__version__, results)}")
    if made_from is not None:
        publish(triton.__version__, results, made_from)
    return FAILED if failed else OK


def run_interpreted(containing: str, jobs: int, made_from: str | None = None) -> int:
    """Run the interpreted tests with the Triton that is here, and return the exit code."""
    why = unfit()
    if why is not None:
        print(why, file=sys.stderr)
        return BAD_INPUT
    done = []
    try:
        for one in interpret(files(containing), jobs):
            print(f"Triton {triton.__version__}, {one}", flush=True)
            done.append(one)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return STOPPED
    if made_from is not None:
        publish_interpreted(triton.__version__, done, made_from)
    return FAILED if any(one.failed for one in done) else OK


def compile_plan(plan: list[Planned], jobs: int = 1, fresh: bool = False) -> list[Compiled]:
    """Results in the order of the plan: those on disk, and the rest compiled now and added to them."""
    store = work_store()
    try:
        # An error may have been the machine's: it is tried again.
        todo = [planned for planned in plan if fresh or (old := store.get(planned)) is None or old.error]
        with tqdm(
            total=len(plan), initial=len(plan) - len(todo), unit="case", desc=f"Triton {triton.__version__}"
        ) as bar:
            for planned, result in compile_all(todo, jobs):
                store.add(planned, result)
                bar.update()
    finally:
        store.close()
    found = [store.get(planned) for planned in plan]
    return [result for result in found if result is not None]


def report(results: list[Compiled]) -> int:
    """Print a line per case that is not plainly well, and return how many have problems."""
    known = load_known().get(triton.__version__, {})
    failed = 0
    for result in results:
        verdict = judge(result, known.get(result.target, {}).get(result.name, 0))
        failed += bool(verdict.problems)
        if verdict.problems or verdict.known:
            print(f"{result.target:8} {result.name}: {result.registers} registers, {result.shared} B shared: {verdict}")
    return failed


def _without(arguments: list[str], option: str) -> list[str]:
    """A command line without an option and its values."""
    kept, skip = [], False
    for argument in arguments:
        if skip or argument == option or argument.startswith(f"{option}="):
            skip = argument == option
            continue
        kept.append(argument)
    return kept


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
