"""python run.py demo: one seed with dense attention, as published, with ours, and with skipped steps too."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from demo.checkpoint import CHECKPOINT, load
from demo.result import full_report, table, write
from demo.sample import DEMO_GRID
from demo.work import attention_share
from draftattention.nodes.demo_prompts import PROMPTS
from tools.comfyui.path import ComfyUIPathError, find_comfyui
from tools.comfyui.server import ComfyUIError

HOSTS = ("diffusers", "comfyui")
FAILED, BAD_INPUT = 1, 2


class DemoError(Exception):
    """One sentence for the user."""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for the results")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--density", type=float, default=0.25, help="share of block pairs computed in sparse steps")
    parser.add_argument("--host", default="diffusers", help=" or ".join(HOSTS))
    parser.add_argument("--prompt", default="both", choices=PROMPTS)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--grid", type=int, nargs=3, default=DEMO_GRID, metavar=("T", "H", "W"), help="in tokens")
    parser.add_argument("--device", default="cpu", help="diffusers host only: cpu, cuda, mps, ...")
    return parser.parse_args(argv)


def check(arguments: argparse.Namespace) -> None:
    """Raises DemoError before any work is done if the arguments cannot be served."""
    if not 0.0 <= arguments.density <= 1.0:
        raise DemoError(
            f"--density is a share between 0 and 1 (0.25 computes a quarter of the blocks), not {arguments.density}"
        )
    if arguments.steps < 1:
        raise DemoError(f"--steps must be at least 1, not {arguments.steps}")
    if min(arguments.grid) < 1:
        raise DemoError(f"--grid needs three positive sizes, not {' '.join(map(str, arguments.grid))}")
    if arguments.host not in HOSTS:
        raise DemoError(f"--host must be {' or '.join(HOSTS)}, not {arguments.host!r}")
    if not CHECKPOINT.is_file():
        raise DemoError(
            f"{CHECKPOINT.name} is missing beside the demo: get the whole repository, or train it with "
            "`python -m demo.train`"
        )
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        probe = arguments.out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DemoError(
            f"--out {arguments.out} cannot be written to ({error.strerror}): choose another folder"
        ) from error
    if arguments.host == "comfyui":
        try:
            if find_comfyui() is None:
                raise DemoError("no ComfyUI was found: set COMFYUI_PATH to its folder, or use --host diffusers")
        except ComfyUIPathError as error:
            raise DemoError(str(error)) from error


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        check(arguments)
        if arguments.host == "comfyui":
            from demo.with_comfyui import run_methods
        else:
            from demo.with_diffusers import run_methods
        runs, device, baseline = run_methods(arguments)
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return BAD_INPUT
    except ComfyUIError as error:
        print(f"demo: {error}", file=sys.stderr)
        return FAILED
    report = full_report(
        runs,
        host=arguments.host,
        device=device,
        grid=tuple(arguments.grid),
        steps=arguments.steps,
        baseline=baseline,
        share=attention_share(load(), math.prod(arguments.grid)),
    )
    paths = write(arguments.out, runs, report)
    print("\n" + table(report) + "\n")
    for path in paths:
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
