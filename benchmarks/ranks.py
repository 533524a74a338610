"""Dense and sparse evaluations of a Wan with random weights over 1, 2, 4, ... ranks: `python run.py bench ranks`.

Each number of ranks is a `torchrun` of its own, on GPUs where there are any and else on CPU processes (a check of the
path, not of speed: the processes share the machine). A row holds the median time of an evaluation, dense and sparse,
side by side in one process group; bytes that one rank sends in an attention call, counted at the collectives; and how
long ranks take to agree on a call. `--shape 720p` is Wan 2.1 14B's attention at 81 frames, in 4 layers: 40
heads of 128, 75,600 tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch

MARK = "bench ranks: "
TIMEOUT_S = 1800


class Shape(NamedTuple):
    """A model and its latent: heads, channels per head, layers, (frames, height, width) of the latent."""

    heads: int
    head_size: int
    layers: int
    latent: tuple[int, int, int]


SHAPES = {
    "tiny": Shape(8, 64, 2, (4, 32, 48)),
    "480p": Shape(40, 128, 4, (21, 60, 104)),
    "720p": Shape(40, 128, 4, (21, 90, 160)),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, help="default: 720p on GPUs, tiny on the CPU")
    parser.add_argument(
        "--ranks", type=int, nargs="+", help="default: 1, 2, 4, ... up to the GPUs there are; 1 2 on CPU"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: GPUs where there are any")
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    gpus = torch.cuda.device_count()
    device = arguments.device or ("cuda" if gpus else "cpu")
    shape = arguments.shape or ("720p" if device == "cuda" else "tiny")
    if arguments.child:
        child(SHAPES[shape], device, arguments.density, arguments.repeats)
        return 0
    sizes = arguments.ranks or [n for n in (1, 2, 4, 8) if n <= (gpus if device == "cuda" else 2)]
    rows = []
    for ranks in sizes:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command += ["-m", "benchmarks.ranks", "--child", "--shape", shape, "--device", device]
        command += ["--density", str(arguments.density), "--repeats", str(arguments.repeats)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        found = [line.partition(MARK)[2] for line in done.stdout.splitlines() if MARK in line]
        if done.returncode or not found:
            print(done.stderr[-4000:], file=sys.stderr)
            print(f"{ranks} ranks: no figures, torchrun ended with {done.returncode}", file=sys.stderr)
            return 1
        rows.append(json.loads(found[0]))
        print(told(rows[-1], rows[0]), flush=True)
    return 0


def told(row: dict[str, Any], first: dict[str, Any]) -> str:
    """A row in words; speed-ups are beside the first row's."""
    return (
        f"{row['ranks']} ranks on {row['device']}, {row['tokens']} tokens, {row['heads']} heads, {row['dtype']}: dense "
        f"{row['dense_s']:.3f} s, sparse {row['sparse_s']:.3f} s an evaluation of {row['layers']} layers "
        f"({row['dense_s'] / row['sparse_s']:.2f}x; beside {first['ranks']} ranks dense "
        f"{first['dense_s'] / row['dense_s']:.2f}x, sparse {first['sparse_s'] / row['sparse_s']:.2f}x); "
        f"executed density {row['executed_density']:.3f}; {row['call_bytes']:,} bytes sent a call and rank; "
        f"{1e3 * row['agree_s']:.2f} ms to agree on a call"
    )


def child(shape: Shape, device_name: str, density: float, repeats: int) -> None:
    """One rank of a row; rank 0 prints it."""
    import torch.distributed as dist
    from diffusers import WanTransformer3DModel

    from draftattention import Settings, apply_draft_attention
    from draftattention.draftattn_core.run.schedule import constant

    torch.set_num_threads(1)
    cuda = device_name == "cuda"
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    ranks = dist.get_world_size()
    torch.manual_seed(0)
    dtype = torch.bfloat16 if cuda else torch.float32
    model: Any = WanTransformer3DModel(
        num_attention_heads=shape.heads, attention_head_dim=shape.head_size, in_channels=16, out_channels=16,
        text_dim=64, freq_dim=256, ffn_dim=2 * shape.heads * shape.head_size, num_layers=shape.layers,
    ).to(device, dtype).eval().requires_grad_(False)  # fmt: skip
    if ranks > 1:
        over_ranks(model, device_name)
    x = torch.randn(1, 16, *shape.latent, device=device, dtype=dtype)
    text = torch.randn(1, 64, 64, device=device, dtype=dtype)

    def evaluate() -> None:
        timestep = torch.tensor([900.0], device=device)
        # diffusers' hook on the model's own inputs takes no output class.
        model(hidden_states=x, timestep=timestep, encoder_hidden_states=text, return_dict=False)
        if cuda:
            torch.cuda.synchronize(device)

    sent: list[int] = []
    found: dict[str, Any] = {}
    with counted(sent):
        for name, given in (("dense", 1.0), ("sparse", density)):
            with apply_draft_attention(model, Settings(schedule=constant(given)), timesteps=[900.0]) as handle:
                evaluate()
                sent.clear()
                evaluate()
                found[f"{name}_sent"] = sum(sent)
                found[f"{name}_s"] = median_seconds(evaluate, repeats)
                spoken = handle._ranks
                found["agree_s"] = agreement_seconds(spoken) if spoken is not None else 0.0
                report = handle.finish_run()
    tokens = shape.latent[0] * (shape.latent[1] // 2) * (shape.latent[2] // 2)
    row = {
        "ranks": ranks, "device": torch.cuda.get_device_name(device) if cuda else "CPU processes", "tokens": tokens,
        "heads": shape.heads, "layers": shape.layers, "dtype": str(dtype).removeprefix("torch."),
        "executed_density": report.executed_density(), "call_bytes": found["sparse_sent"] // shape.layers, **found,
    }  # fmt: skip
    if dist.get_rank() == 0:
        print(MARK + json.dumps(row), flush=True)
    dist.destroy_process_group()


def over_ranks(model: Any, device: str) -> None:
    """Ulysses over all processes; see docs/examples/diffusers_ranks.py."""
    import torch.distributed as dist
    from diffusers import ContextParallelConfig

    ranks = dist.get_world_size()
    mesh = dist.device_mesh.init_device_mesh(device, (1, ranks), mesh_dim_names=("ring", "ulysses"))
    with contextlib.ExitStack() as stack:
        if device == "cpu":
            stack.enter_context(mock.patch("torch._C._get_accelerator", lambda: torch.device("cpu")))
            stack.enter_context(mock.patch("torch.accelerator.device_count", lambda: 1))
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=ranks, mesh=mesh))


@contextlib.contextmanager
def counted(sent: list[int]) -> Iterator[None]:
    """Has the bytes kept that this rank sends in every exchange of heads."""
    import torch.distributed as dist
    from diffusers.models import attention_dispatch

    plain = attention_dispatch._all_to_all_single

    def counting(x: torch.Tensor, group: Any) -> torch.Tensor:
        ranks = dist.get_world_size(group)
        sent.append(x.nbytes * (ranks - 1) // ranks)
        out: torch.Tensor = plain(x, group)
        return out

    attention_dispatch._all_to_all_single = counting
    try:
        yield
    finally:
        attention_dispatch._all_to_all_single = plain


def median_seconds(act: Callable[[], None], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        act()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def agreement_seconds(ranks: Any, repeats: int = 50) -> float:
    """How long the ranks take to agree on a call that is sparse on all of them."""
    from draftattention.draftattn_core.run.ranks.together import agreed

    return median_seconds(lambda: agreed(ranks, None) and None, repeats)


if __name__ == "__main__":
    sys.exit(main())
