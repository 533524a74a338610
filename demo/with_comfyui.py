"""The demo's runs on a real ComfyUI: the demo workflow, submitted to a headless server started for it."""

from __future__ import annotations

import argparse
import copy
import io
import json
import urllib.parse
import urllib.request
from typing import Any

from PIL import Image
from safetensors.torch import load
from tqdm import tqdm

from demo.checkpoint import CHECKPOINT
from demo.latent import latent_to_rgb, wan_process_out_inverse
from demo.methods import BUDGETS, COMPOSED, DENSE, METHODS, PAPER, schedule, skip
from demo.result import MethodRun, cpu_name
from draftattention.draftattn_core import Policy
from draftattention.draftattn_core.views.charts import stack
from draftattention.draftattn_core.views.charts.canvas import blank, write
from tools.comfyui.path import PACK_ROOT, find_comfyui
from tools.comfyui.server import ComfyUIError, ComfyUIServer

WORKFLOW = PACK_ROOT / "workflows" / "api" / "demo_tiny_wan.json"
OLDEST_FOR_CHECKPOINT = (0, 15, 1)


def workflow(method: str, arguments: argparse.Namespace) -> tuple[dict[str, Any], str, str]:
    """The demo workflow set up for one method; returns it with the ids of its SaveLatent and report nodes.

    The dense run keeps our node at sparsity 0, so that its calls are counted too; the composed one has a Skip Steps
    node behind it.
    """
    prompt = copy.deepcopy(json.loads(WORKFLOW.read_text(encoding="utf-8")))

    def only(class_type: str) -> str:
        return next(ident for ident, node in prompt.items() if node["class_type"] == class_type)

    sampler, apply, size = only("KSampler"), only("ApplyDraftAttention"), only("EmptyHunyuanLatentVideo")
    t, h, w = arguments.grid
    prompt[size]["inputs"].update(width=16 * w, height=16 * h, length=4 * (t - 1) + 1)
    prompt[sampler]["inputs"].update(steps=arguments.steps, seed=arguments.seed, cfg=1.0)
    prompt[only("ModelSamplingSD3")]["inputs"]["shift"] = 5.0
    positive = prompt[sampler]["inputs"]["positive"][0]
    prompt[positive]["inputs"]["prompt"] = arguments.prompt
    points = schedule(method, arguments.density, arguments.steps).points
    prompt["schedule"] = {
        "class_type": "SparsityScheduler",
        "inputs": {
            "curve": "custom points",
            "steps": arguments.steps,
            "density": 0.0,
            "points": ", ".join(f"{progress}:{density}" for progress, density in points),
            "end_share": 0.0,
            "end_density": 0.5,
            "layer_bands": "",
            "dense_layers": "",
        },
    }
    # The tail is the core's default, so that both hosts run the same method.
    prompt[apply]["inputs"].update(
        preset="paper" if method == PAPER else "custom", schedule=["schedule", 0], min_tokens=0, tail=Policy().tail
    )
    if method == COMPOSED:
        skipping = skip()
        prompt[apply]["inputs"]["budgets"] = BUDGETS
        for node in prompt.values():
            if node["inputs"].get("model") == [apply, 0]:
                node["inputs"]["model"] = ["skip", 0]
        prompt["skip"] = {
            "class_type": "DraftAttentionSkipSteps",
            "inputs": {
                "model": [apply, 0],
                "rule": skipping.rule,
                "threshold": skipping.threshold,
                "first_steps": skipping.first_of(arguments.steps),
                "max_in_a_row": skipping.max_skips or 0,
                "start": skipping.windows[0][0],
                "end": skipping.windows[0][1],
                "offload": skipping.offload,
                "share": skipping.share,
            },
        }
    prompt["report"] = {
        "class_type": "DraftAttentionReport",
        "inputs": {
            "report": [apply, 1],
            "after": [sampler, 0],
            "save_json": True,
            "filename_prefix": f"draft_attention/{method}",
        },
    }
    return prompt, only("SaveLatent"), "report"


def run_methods(arguments: argparse.Namespace) -> tuple[dict[str, MethodRun], str, str]:
    """Run the workflow once per method; returns the runs, the device in words and the baseline in words.

    Raises:
        ComfyUIError: if the server does not start or a workflow fails.
    """
    install = find_comfyui()
    if install is None:
        raise ComfyUIError("no ComfyUI was found: set COMFYUI_PATH to its folder")
    version = tuple(int(part) for part in install.version.split(".")[:3] if part.isdigit())
    if len(version) == 3 and version < OLDEST_FOR_CHECKPOINT:
        raise ComfyUIError(
            f"ComfyUI {install.version} cannot load the demo's checkpoint, it needs 0.15.1 or newer; "
            "the pack itself runs on it"
        )
    print(f"starting ComfyUI {install.version}, found by {install.found_by}", flush=True)
    runs: dict[str, MethodRun] = {}
    with (
        ComfyUIServer(install, [CHECKPOINT], ["--use-pytorch-cross-attention"]) as server,
        tqdm(total=len(METHODS) * arguments.steps, unit="step") as bar,
    ):
        for index, method in enumerate(METHODS):
            bar.set_description(method)
            before = index * arguments.steps

            def show(done: int, of: int, before: int = before) -> None:
                bar.update(before + min(done, arguments.steps) - bar.n)

            prompt, latent_node, report_node = workflow(method, arguments)
            outputs = server.run(prompt, show)
            runs[method] = _collect(server, method, outputs[latent_node], outputs[report_node])
    baseline = f"ComfyUI {install.version} with torch SDPA ({DENSE} run of the same seed on the same server)"
    return runs, f"{cpu_name()} (CPU)", baseline


def _collect(server: ComfyUIServer, method: str, latents: dict[str, Any], shown: dict[str, Any]) -> MethodRun:
    tensors = load(_file(server, latents["latents"][0]))
    x0 = wan_process_out_inverse(tensors["latent_tensor"].float())
    picture = Image.open(io.BytesIO(_file(server, shown["draftattention_picture"][0]["whole"]))).convert("RGB")
    path = next((server.output / "draft_attention").glob(f"{method}_*.json"))
    report = json.loads(path.read_text(encoding="utf-8"))
    name, pen = blank(picture.width, 28)
    write(pen, (12, 6), f"{method}:", size=16)
    return MethodRun(latent_to_rgb(x0)[0], report, stack([name, picture], gap=0), report["total_seconds"])


def _file(server: ComfyUIServer, entry: dict[str, str]) -> bytes:
    query = urllib.parse.urlencode({key: entry[key] for key in ("filename", "subfolder", "type")})
    with urllib.request.urlopen(f"{server.url}/view?{query}", timeout=60) as answer:
        return bytes(answer.read())
