"""`python run.py calibrate MODEL --out PROFILE`: make or grow a profile of a model, run by run.

MODEL is a folder that a diffusers pipeline was saved to, or `tiny`, the demo's own model. Every prompt is sampled dense
and measured; each run is added to the profile as soon as it is done, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from draftattention.draftattn_core.method.policy import TAILS, Policy, TailName
from draftattention.draftattn_core.run.fingerprint import ProfileError
from draftattention.draftattn_core.run.profile import FEW_PROMPTS
from draftattention.draftattn_core.run.profile_file import SUFFIX, profile_path
from draftattention.draftattn_core.run.schedule import constant
from draftattention.draftattn_core.run.settings import Settings
from draftattention.nodes.demo_prompts import PROMPTS
from tools.calibrate.jobs import Job, Progress, jobs, read_prompts
from tools.calibrate.pipelines import DTYPES, Pipeline, VideoSize, load_pipeline
from tools.calibrate.source import Source, sees_all_buckets, size_words, steps_needed
from tools.calibrate.tiny import GRID, TinyModel

TINY = "tiny"
BLOCKS = {"128/64": (128, 64), "128/128": (128, 128), "64/64": (64, 64)}


def main(argv: Sequence[str] | None = None) -> int:
    """Calibrate; 0, 1 if a run failed, 2 for bad input, 130 if it was stopped."""
    arguments = parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        prompts = chosen_prompts(arguments)
        wanted = jobs(prompts, arguments.seed, arguments.seeds)
        path = profile_path(arguments.out.parent, arguments.out.name)
        source = source_of(arguments)
        for prompt in prompts:
            source.check(prompt)
        chosen = {name: getattr(arguments, name) for name in ("tail", "blocks", "masks")}
        progress = Progress(path, {**source.conditions, **chosen})
        whole = arguments.whole or arguments.masks
        return calibrate(source, wanted, progress, settings_of(arguments), whole=whole)
    except (OSError, ValueError) as error:
        print(f"calibrate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ncalibrate: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def chosen_prompts(arguments: argparse.Namespace) -> list[str]:
    """From the command line and the file, each once; the tiny model has its own."""
    given = [prompt.strip() for prompt in arguments.prompt if prompt.strip()]
    if arguments.prompts is not None:
        given += read_prompts(arguments.prompts)
    if not given and arguments.model == TINY:
        given = list(PROMPTS)
    if not given:
        raise ValueError("give prompts: --prompts FILE with one a line, or --prompt TEXT")
    return list(dict.fromkeys(given))


def source_of(arguments: argparse.Namespace) -> Source:
    """The model that the command line names, loaded."""
    if arguments.steps < 1 or arguments.seeds < 1:
        raise ValueError("a calibration needs at least one step and one seed")
    if arguments.model == TINY:
        guidance = 1.0 if arguments.guidance is None else arguments.guidance
        return TinyModel(grid=tuple(arguments.grid), steps=arguments.steps, guidance=guidance, device=arguments.device)
    folder = Path(arguments.model)
    pipe = load_pipeline(folder, device=arguments.device, dtype=arguments.dtype, offload=arguments.offload)
    size = VideoSize(arguments.width, arguments.height, arguments.frames)
    return Pipeline(pipe, folder.resolve().name, steps=arguments.steps, size=size, guidance=arguments.guidance)


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Dense and recording, under the conditions that the nodes' runs with the same choices have."""
    q_block, k_block = BLOCKS[arguments.blocks]
    tail: TailName = "linear1" if arguments.tail == "auto" else arguments.tail
    return Settings(
        policy=Policy(tail=tail),
        schedule=constant(1.0),
        auto_tail=arguments.tail == "auto",
        q_block=q_block,
        k_block=k_block,
        record=True,
        record_masks=arguments.masks,
    )


def calibrate(source: Source, wanted: Sequence[Job], progress: Progress, settings: Settings, *, whole: bool) -> int:
    """Measure the runs that the profile lacks; says what it holds in the end."""
    left = [job for job in wanted if not progress.done(job)]
    steps = source.steps if whole else steps_needed(source.steps)
    if len(left) < len(wanted):
        print(f"calibrate: {len(wanted) - len(left)} of {len(wanted)} runs are in {progress.path.name} already")
    if not sees_all_buckets(source.steps):
        print(f"calibrate: {source.steps} steps do not visit every part of the noise range; the others are filled in")
    since, failed = time.monotonic(), 0
    with tqdm(total=len(wanted) * steps, initial=(len(wanted) - len(left)) * steps, unit="step") as bar:
        for job in left:
            bar.set_description(f"{job.prompt[:24]}, seed {job.seed}")
            found = source.record(job, settings, whole, bar.update)
            if found.profile is None:
                failed += 1
                bar.write(f"calibrate: nothing was measured of {job.prompt[:40]!r}, seed {job.seed}")
                continue
            progress.add(job, found)
    profile = progress.profile
    if profile is None:
        raise ProfileError("nothing was measured: the model's attention is not served here")
    size = progress.path.stat().st_size
    print(f"calibrate: {progress.path} ({size / 1000:.0f} kB), {profile.made_from()}")
    if progress.masks is not None:
        size = progress.masks_path.stat().st_size
        print(f"calibrate: {progress.masks_path} ({size / 1e6:.1f} MB), {progress.masks.made_from()}")
    print(f"calibrate: {len(left)} run{'' if len(left) == 1 else 's'} in {size_words(time.monotonic() - since)}")
    if profile.caveat:
        print(f"calibrate: {profile.caveat}; from {FEW_PROMPTS} on this note is gone wherever it is used")
    return 1 if failed else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run.py calibrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help=f"folder of a diffusers pipeline, or {TINY}")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="PROFILE", help=f"{SUFFIX} file; may exist, then it grows"
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt a line; # begins a remark")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="one prompt; may be repeated")
    parser.add_argument("--seeds", type=int, default=1, help="runs of every prompt")
    parser.add_argument("--seed", type=int, default=0, help="of the first run of a prompt; the others count on")
    parser.add_argument("--steps", type=int, default=20, help="of the runs that the profile is meant for")
    parser.add_argument("--whole", action="store_true", help="sample to the end; else until all is measured")
    parser.add_argument(
        "--masks", action="store_true", help="vote for CalibAtt's masks as well, for this size and number of steps"
    )
    parser.add_argument("--tail", choices=("auto", *TAILS), default="auto", help="as on the node that will use it")
    parser.add_argument("--blocks", choices=tuple(BLOCKS), default="128/64", help="as on the node that will use it")
    parser.add_argument("--guidance", type=float, help="guidance scale; the model's default otherwise")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    pipelines = parser.add_argument_group("diffusers pipelines")
    pipelines.add_argument("--width", type=int)
    pipelines.add_argument("--height", type=int)
    pipelines.add_argument("--frames", type=int)
    pipelines.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16")
    pipelines.add_argument("--offload", action="store_true", help="keep on the device what computes, the rest in RAM")
    tiny = parser.add_argument_group("the tiny model")
    tiny.add_argument("--grid", type=int, nargs=3, default=GRID, metavar=("T", "H", "W"), help="tokens of the video")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
