"""The demo's workflow: the repository's tiny model, dense and sparse, with a picture, a curve and a report."""

from __future__ import annotations

from typing import Any

from tools.workflows.graph import Graph

REPOSITORY = "https://github.com/comfyui-draftattention/ComfyUI-DraftAttention"
WEIGHTS = {
    "name": "tiny_wan.safetensors",
    "url": f"{REPOSITORY}/raw/main/demo/tiny_wan.safetensors",
    "directory": "diffusion_models",
}
ABOUT = f"""# Dense against sparse, on a CPU, in minutes

A tiny video model (11 MB, ComfyUI 0.15.1 and newer), sampled twice with one seed: dense, and behind \
**DraftAttention Sparse**. It needs no text encoder and no VAE.

**Before the first run** put [{WEIGHTS["name"]}]({WEIGHTS["url"]}) into `ComfyUI/models/{WEIGHTS["directory"]}` and \
press `R`. A git clone of this pack has the file in its folder `demo`.

**To watch it being sampled**, set *Settings > Comfy > Execution > Live preview method* to `latent2rgb`: previews are \
off by default.

**What you see**

- *Sparsity Scheduler*: how dense each step may be. Drag its points and run again.
- *DraftAttention Sparse*: the live map, and how the run went.
- *Compare*: both clips; drag the line, press play. The picture is the latent in the colours of the model's own preview.
- *Report*: what was computed, what was not, and the error measured.

The model shows moving shapes and nothing else: its prompts are formulas."""


def demo(info: dict[str, Any]) -> Graph:
    graph = Graph("demo_tiny_wan", info)
    graph.note(0, ABOUT, title="Demo", width=420, height=560)
    loaded = graph.add("UNETLoader", 1, models=[WEIGHTS], unet_name=WEIGHTS["name"])
    shifted = graph.add("ModelSamplingSD3", 1, model=loaded.out(), shift=3.0)
    positive = graph.add("DraftAttentionDemoPrompt", 1, title="Prompt", prompt="both")
    negative = graph.add("DraftAttentionDemoPrompt", 1, title="Negative prompt", prompt="none")
    latent = graph.add("EmptyHunyuanLatentVideo", 1, width=480, height=320, length=33)
    schedule = graph.add("SparsityScheduler", 2, box=(420, 500), curve="balanced", steps=12, model=shifted.out())
    applied = graph.add(
        "ApplyDraftAttention",
        2,
        box=(420, None),
        model=shifted.out(),
        schedule=schedule.out("schedule"),
        min_tokens=0,
    )
    latents = []
    for title, model in (("Dense", shifted.out()), ("Sparse", applied.out("model"))):
        sampler = graph.add(
            "KSampler",
            3,
            title=title,
            model=model,
            positive=positive.out(),
            negative=negative.out(),
            latent_image=latent.out(),
            seed=7,
            steps=12,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
        )
        latents.append(sampler.out())
    graph.add("DraftAttentionCompare", 4, box=(480, None), reference=latents[0], clip=latents[1], model=shifted.out())
    graph.add("DraftAttentionReport", 5, box=(480, 1000), report=applied.out("report"), after=latents[1])
    return graph
