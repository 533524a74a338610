"""Writes the workflows: python -m tools.workflows.make OBJECT_INFO.json

OBJECT_INFO.json is what the oldest ComfyUI supported answers to GET /object_info, with this pack loaded. The pictures
beside them are photographs, see `photograph`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.comfyui.path import PACK_ROOT
from tools.workflows.demo import demo
from tools.workflows.graph import Graph, Node, Output

FOLDER = PACK_ROOT / "workflows"
HUB = "https://huggingface.co/Comfy-Org"
WAN21 = f"{HUB}/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
WAN22 = f"{HUB}/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files"
HUNYUAN = f"{HUB}/HunyuanVideo_repackaged/resolve/main/split_files"
HUNYUAN15 = f"{HUB}/HunyuanVideo_1.5_repackaged/resolve/main/split_files"
FLUX_TEXT = "https://huggingface.co/comfyanonymous/flux_text_encoders/resolve/main"

PROMPT = (
    "A paper boat drifts down a narrow mountain stream between mossy stones, low camera following just above the "
    "water, ripples and drops in the morning light, shallow depth of field, natural colours."
)
# What `speed` does, in the words of the notes of workflows with 20 steps or more.
SPEED = (
    "`speed` is `fast`: two fifths of the steps are computed, with sparse attention, and the others forecast between "
    "them, about three tenths of the dense model's work or less. The report says how far the forecasts were off; "
    "`quality` computes as many steps densely, which is closer and as fast where sparse attention gains nothing, "
    "`balanced` more steps, `max` fewer, `off` every step with sparse attention alone."
)
NEGATIVE = "overexposed, static, blurred details, subtitles, worst quality, low quality, jpeg artefacts, deformed"

# Below a node that grows when it shows a run.
ROOM = 300


def model(base: str, folder: str, name: str) -> dict[str, str]:
    """One file: where it is downloaded from and into which folder of ComfyUI/models it goes."""
    return {"name": name, "url": f"{base}/{folder}/{name}", "directory": folder}


UMT5 = model(WAN21, "text_encoders", "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
WAN21_VAE = model(WAN22, "vae", "wan_2.1_vae.safetensors")


def files_note(files: list[dict[str, str]], about: str) -> str:
    """Text of the note: what the workflow does, and every file with its link and folder."""
    lines = [about, "", "**Files** (put them into these folders of `ComfyUI/models`):", ""]
    lines += [f"- `{file['directory']}`: [{file['name']}]({file['url']})" for file in files]
    return "\n".join(lines)


class Video(Graph):
    """A graph with the parts all video workflows share."""

    def unet(self, column: int, file: dict[str, str], title: str | None = None) -> Output:
        return self.add("UNETLoader", column, models=[file], title=title, unet_name=file["name"]).out()

    def lora(self, column: int, source: Output, file: dict[str, str]) -> Output:
        node = self.add("LoraLoaderModelOnly", column, models=[file], model=source, lora_name=file["name"])
        return node.out()

    def shift(self, column: int, source: Output, shift: float) -> Output:
        return self.add("ModelSamplingSD3", column, model=source, shift=shift).out()

    def vae(self, column: int, file: dict[str, str]) -> Output:
        return self.add("VAELoader", column, models=[file], vae_name=file["name"]).out()

    def clip(self, column: int, file: dict[str, str], kind: str) -> Output:
        return self.add("CLIPLoader", column, models=[file], clip_name=file["name"], type=kind).out()

    def texts(self, column: int, clip: Output, negative: str = NEGATIVE) -> tuple[Output, Output]:
        positive = self.add("CLIPTextEncode", column, title="Prompt", clip=clip, text=PROMPT)
        return positive.out(), self.add(
            "CLIPTextEncode", column, title="Negative prompt", clip=clip, text=negative
        ).out()

    def sparse(self, column: int, source: Output, title: str | None = None, **values: Any) -> Node:
        return self.add("ApplyDraftAttention", column, title=title, box=(340, None), room=ROOM, model=source, **values)

    def report(self, column: int, source: Node, after: Output, title: str | None = None) -> None:
        """The run's report, as a picture and as text."""
        self.add("DraftAttentionReport", column, title=title, box=(460, 900), report=source.out("report"), after=after)

    def video(self, column: int, images: Output, fps: float, prefix: str) -> None:
        made = self.add("CreateVideo", column, images=images, fps=fps)
        self.add("SaveVideo", column, video=made.out(), filename_prefix=prefix, box=(420, 360))


def wan21_t2v(info: dict[str, Any]) -> Graph:
    graph = Video("wan21_t2v_14b", info)
    unet = model(WAN21, "diffusion_models", "wan2.1_t2v_14B_fp8_scaled.safetensors")
    about = (
        "# Wan 2.1 text to video 14B, 1280x720, 81 frames\n\n75,600 tokens: about 72 % of the dense model's work is "
        f"attention. In **DraftAttention Sparse**, {SPEED}"
    )
    graph.note(0, files_note([unet, UMT5, WAN21_VAE], about), title="Wan 2.1 14B")
    loaded = graph.unet(1, unet)
    clip, vae = graph.clip(1, UMT5, "wan"), graph.vae(1, WAN21_VAE)
    applied = graph.sparse(2, graph.shift(2, loaded, 8.0), speed="fast")
    positive, negative = graph.texts(3, clip)
    latent = graph.add("EmptyHunyuanLatentVideo", 3, width=1280, height=720, length=81).out()
    sampled = graph.add(
        "KSampler",
        4,
        model=applied.out("model"),
        positive=positive,
        negative=negative,
        latent_image=latent,
        seed=42,
        steps=30,
        cfg=6.0,
        sampler_name="euler",
        scheduler="simple",
    ).out()
    graph.video(4, graph.add("VAEDecode", 4, samples=sampled, vae=vae).out(), 16.0, "draft_attention/wan21_t2v")
    graph.report(5, applied, sampled)
    return graph


def wan22_t2v(info: dict[str, Any]) -> Graph:
    graph = Video("wan22_t2v_two_experts", info)
    high = model(WAN22, "diffusion_models", "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors")
    low = model(WAN22, "diffusion_models", "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors")
    about = (
        "# Wan 2.2 text to video, two experts, one schedule\n\nOne **Sparsity Scheduler** feeds both experts. Its "
        "curve belongs to the noise, not to step numbers: the dense start falls into the high-noise expert, and the "
        "low-noise half begins where the first one ended instead of starting dense again.\n\nSet both **DraftAttention "
        "Sparse** nodes alike. This computes every step; to skip some as well, put a **Skip Steps** node behind each "
        "model: each half plans for itself, and computes 4 of its 10 steps at a share of 0.4."
    )
    graph.note(0, files_note([high, low, UMT5, WAN21_VAE], about), title="Wan 2.2 14B, two experts", height=520)
    high_loaded = graph.unet(1, high, "High-noise expert")
    low_loaded = graph.unet(1, low, "Low-noise expert")
    clip, vae = graph.clip(1, UMT5, "wan"), graph.vae(1, WAN21_VAE)
    high_shifted, low_shifted = graph.shift(2, high_loaded, 8.0), graph.shift(2, low_loaded, 8.0)
    schedule = graph.add("SparsityScheduler", 2, box=(420, 500), curve="balanced", steps=20, model=high_shifted).out(
        "schedule"
    )
    positive, negative = graph.texts(2, clip)
    latent = graph.add("EmptyHunyuanLatentVideo", 2, width=1280, height=720, length=81).out()
    first = graph.sparse(3, high_shifted, "DraftAttention Sparse (high noise)", schedule=schedule)
    second = graph.sparse(3, low_shifted, "DraftAttention Sparse (low noise)", schedule=schedule)
    halves = two_halves(graph, 4, (first, second), (positive, negative), latent, steps=20, split=10, cfg=3.5)
    graph.video(5, graph.add("VAEDecode", 5, samples=halves[1], vae=vae).out(), 16.0, "draft_attention/wan22_t2v")
    graph.report(6, first, halves[0], "Report (high noise)")
    graph.report(7, second, halves[1], "Report (low noise)")
    return graph


def two_halves(
    graph: Graph,
    column: int,
    applied: tuple[Node, Node],
    conditioning: tuple[Output, Output],
    latent: Output,
    *,
    steps: int,
    split: int,
    cfg: float,
) -> tuple[Output, Output]:
    """Two KSamplerAdvanced over one trajectory; their outputs."""
    shared: dict[str, Any] = {
        "steps": steps,
        "cfg": cfg,
        "sampler_name": "euler",
        "scheduler": "simple",
        "positive": conditioning[0],
        "negative": conditioning[1],
        "noise_seed": 42,
    }
    first = graph.add(
        "KSamplerAdvanced",
        column,
        title=f"Steps 1 to {split}",
        model=applied[0].out("model"),
        latent_image=latent,
        add_noise="enable",
        start_at_step=0,
        end_at_step=split,
        return_with_leftover_noise="enable",
        **shared,
    ).out()
    second = graph.add(
        "KSamplerAdvanced",
        column,
        title=f"Steps {split + 1} to {steps}",
        model=applied[1].out("model"),
        latent_image=first,
        add_noise="disable",
        start_at_step=split,
        end_at_step=10000,
        return_with_leftover_noise="disable",
        **shared,
    ).out()
    return first, second


def wan22_i2v(info: dict[str, Any]) -> Graph:
    graph = Video("wan22_i2v_4step_lora", info)
    unets = [
        model(WAN22, "diffusion_models", f"wan2.2_i2v_{side}_noise_14B_fp8_scaled.safetensors")
        for side in ("high", "low")
    ]
    loras = [
        model(WAN22, "loras", f"wan2.2_i2v_lightx2v_4steps_lora_v1_{side}_noise.safetensors")
        for side in ("high", "low")
    ]
    about = (
        "# Wan 2.2 image to video with the 4-step LoRA\n\nWith four steps a dense first step would be a quarter of the "
        "run. The preset `auto` sees the step count and starts at a higher density instead: 0.8, then 0.4. Nothing can "
        "be skipped in so few steps, so this is one and a half times as fast at the very best; on a GeForce card with "
        "SageAttention it may be no faster at all: look at the line under the nodes.\n\nThe advanced switch "
        "`keep_first_frame`, off here, lets every block see the input image exactly; the blocks that hold its tokens "
        "span four frames, so that takes about a fifth of all blocks off the budget."
    )
    graph.note(0, files_note([*unets, *loras, UMT5, WAN21_VAE], about), title="Wan 2.2 i2v, 4 steps", height=560)
    image = graph.add("LoadImage", 0, box=(380, 320), image="example.png")
    clip, vae = graph.clip(1, UMT5, "wan"), graph.vae(1, WAN21_VAE)
    positive, negative = graph.texts(2, clip)
    video = graph.add(
        "WanImageToVideo",
        2,
        positive=positive,
        negative=negative,
        vae=vae,
        start_image=image.out(),
        width=1280,
        height=720,
        length=81,
    )
    applied = []
    for title, unet, lora in zip(("high noise", "low noise"), unets, loras, strict=True):
        loaded = graph.lora(1, graph.unet(1, unet, f"Expert, {title}"), lora)
        shifted = graph.shift(3, loaded, 5.0)
        applied.append(graph.sparse(3, shifted, f"DraftAttention Sparse ({title})"))
    halves = two_halves(
        graph,
        4,
        (applied[0], applied[1]),
        (video.out("positive"), video.out("negative")),
        video.out("latent"),
        steps=4,
        split=2,
        cfg=1.0,
    )
    graph.video(5, graph.add("VAEDecode", 5, samples=halves[1], vae=vae).out(), 16.0, "draft_attention/wan22_i2v")
    graph.report(6, applied[1], halves[1], "Report (low noise)")
    return graph


def wan22_5b(info: dict[str, Any]) -> Graph:
    graph = Video("wan22_5b", info)
    unet = model(WAN22, "diffusion_models", "wan2.2_ti2v_5B_fp16.safetensors")
    vae_file = model(WAN22, "vae", "wan2.2_vae.safetensors")
    about = (
        "# Wan 2.2 5B, 1280x704, 121 frames\n\n27,280 tokens: only about half of the dense model's work is attention, "
        "so sparse attention alone gains little here and skipped steps gain most. In **DraftAttention Sparse**, "
        f"{SPEED} Connect an image to `start_image` for image to video."
    )
    graph.note(0, files_note([unet, UMT5, vae_file], about), title="Wan 2.2 5B")
    loaded = graph.unet(1, unet)
    clip, vae = graph.clip(1, UMT5, "wan"), graph.vae(1, vae_file)
    applied = graph.sparse(2, graph.shift(2, loaded, 8.0), speed="fast")
    positive, negative = graph.texts(3, clip)
    latent = graph.add("Wan22ImageToVideoLatent", 3, vae=vae, width=1280, height=704, length=121).out()
    sampled = graph.add(
        "KSampler",
        4,
        model=applied.out("model"),
        positive=positive,
        negative=negative,
        latent_image=latent,
        seed=42,
        steps=20,
        cfg=5.0,
        sampler_name="euler",
        scheduler="simple",
    ).out()
    graph.video(4, graph.add("VAEDecode", 4, samples=sampled, vae=vae).out(), 24.0, "draft_attention/wan22_5b")
    graph.report(5, applied, sampled)
    return graph


def custom_sampling(
    graph: Graph, column: int, applied: Node, guider: Output, latent: Output, shifted: Output, steps: int
) -> Output:
    """SamplerCustomAdvanced with the simple scheduler."""
    noise = graph.add("RandomNoise", column, noise_seed=42).out()
    sampler = graph.add("KSamplerSelect", column, sampler_name="euler").out()
    sigmas = graph.add("BasicScheduler", column, model=shifted, scheduler="simple", steps=steps).out()
    return graph.add(
        "SamplerCustomAdvanced", column, noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=latent
    ).out()


def hunyuan15(info: dict[str, Any]) -> Graph:
    graph = Video("hunyuanvideo15_t2v_720p", info)
    unet = model(HUNYUAN15, "diffusion_models", "hunyuanvideo1.5_720p_t2v_fp16.safetensors")
    qwen = model(HUNYUAN15, "text_encoders", "qwen_2.5_vl_7b_fp8_scaled.safetensors")
    byt5 = model(HUNYUAN15, "text_encoders", "byt5_small_glyphxl_fp16.safetensors")
    vae_file = model(HUNYUAN15, "vae", "hunyuanvideo15_vae_fp16.safetensors")
    about = (
        "# HunyuanVideo 1.5 text to video, 1280x720, 121 frames\n\nAbout 111,600 tokens: some 90 % of the dense "
        "model's work is attention, the best case for sparse attention. Text tokens are always kept, as queries "
        f"and as keys, and their mask is honoured. In **DraftAttention Sparse**, {SPEED}"
    )
    graph.note(0, files_note([unet, qwen, byt5, vae_file], about), title="HunyuanVideo 1.5", height=460)
    loaded = graph.unet(1, unet)
    clip = graph.add(
        "DualCLIPLoader",
        1,
        models=[qwen, byt5],
        clip_name1=qwen["name"],
        clip_name2=byt5["name"],
        type="hunyuan_video_15",
    ).out()
    vae = graph.vae(1, vae_file)
    shifted = graph.shift(2, loaded, 7.0)
    applied = graph.sparse(2, shifted, speed="fast")
    positive, negative = graph.texts(3, clip, negative="")
    latent = graph.add("EmptyHunyuanVideo15Latent", 3, width=1280, height=720, length=121).out()
    guider = graph.add("CFGGuider", 3, model=applied.out("model"), positive=positive, negative=negative, cfg=6.0).out()
    sampled = custom_sampling(graph, 4, applied, guider, latent, shifted, steps=20)
    decoded = graph.add("VAEDecodeTiled", 4, samples=sampled, vae=vae).out()
    graph.video(5, decoded, 24.0, "draft_attention/hunyuanvideo15")
    graph.report(6, applied, sampled)
    return graph


def hunyuan(info: dict[str, Any]) -> Graph:
    graph = Video("hunyuanvideo_t2v", info)
    unet = model(HUNYUAN, "diffusion_models", "hunyuan_video_t2v_720p_bf16.safetensors")
    llava = model(HUNYUAN, "text_encoders", "llava_llama3_fp8_scaled.safetensors")
    clip_l = {"name": "clip_l.safetensors", "url": f"{FLUX_TEXT}/clip_l.safetensors", "directory": "text_encoders"}
    vae_file = model(HUNYUAN, "vae", "hunyuan_video_vae_bf16.safetensors")
    about = (
        "# HunyuanVideo text to video, 1280x720, 129 frames\n\n118,800 tokens: some 87 % of the dense model's work is "
        "attention. The model is guidance-distilled: one evaluation per step, no negative prompt. In "
        f"**DraftAttention Sparse**, {SPEED}"
    )
    graph.note(0, files_note([unet, clip_l, llava, vae_file], about), title="HunyuanVideo", height=460)
    loaded = graph.unet(1, unet)
    clip = graph.add(
        "DualCLIPLoader",
        1,
        models=[clip_l, llava],
        clip_name1=clip_l["name"],
        clip_name2=llava["name"],
        type="hunyuan_video",
    ).out()
    vae = graph.vae(1, vae_file)
    shifted = graph.shift(2, loaded, 7.0)
    applied = graph.sparse(2, shifted, speed="fast")
    positive = graph.add("CLIPTextEncode", 3, title="Prompt", clip=clip, text=PROMPT).out()
    guided = graph.add("FluxGuidance", 3, conditioning=positive, guidance=6.0).out()
    latent = graph.add("EmptyHunyuanLatentVideo", 3, width=1280, height=720, length=129).out()
    guider = graph.add("BasicGuider", 3, model=applied.out("model"), conditioning=guided).out()
    sampled = custom_sampling(graph, 4, applied, guider, latent, shifted, steps=20)
    decoded = graph.add("VAEDecodeTiled", 4, samples=sampled, vae=vae, tile_size=256).out()
    graph.video(5, decoded, 24.0, "draft_attention/hunyuanvideo")
    graph.report(6, applied, sampled)
    return graph


def ab_compare(info: dict[str, Any]) -> Graph:
    graph = Video("ab_compare", info)
    unet = model(WAN21, "diffusion_models", "wan2.1_t2v_1.3B_fp16.safetensors")
    about = (
        "# Same seed, dense against sparse\n\nBoth samplers share seed, prompt and settings; only one model goes "
        "through **DraftAttention Sparse**. **Compare** measures PSNR, SSIM and flicker against the dense run and puts "
        "the clips side by side.\n\n**Capture** keeps one attention call of the sparse run, **Preview** shows where "
        "one place of the video looks. The model is the small one, so that the comparison takes minutes; put your own "
        "in its place."
    )
    graph.note(0, files_note([unet, UMT5, WAN21_VAE], about), title="A/B at the same seed", height=520)
    loaded = graph.unet(1, unet)
    clip, vae = graph.clip(1, UMT5, "wan"), graph.vae(1, WAN21_VAE)
    shifted = graph.shift(2, loaded, 8.0)
    applied = graph.sparse(2, shifted)
    captured = graph.add(
        "DraftAttentionCapture", 2, model=applied.out("model"), report=applied.out("report"), step=-1, layer=10
    )
    positive, negative = graph.texts(3, clip)
    latent = graph.add("EmptyHunyuanLatentVideo", 3, width=832, height=480, length=81).out()
    outputs = []
    for title, source in (("Dense", shifted), ("Sparse", captured.out("model"))):
        sampled = graph.add(
            "KSampler",
            4,
            title=title,
            model=source,
            positive=positive,
            negative=negative,
            latent_image=latent,
            seed=42,
            steps=20,
            cfg=6.0,
            sampler_name="euler",
            scheduler="simple",
        ).out()
        outputs.append((sampled, graph.add("VAEDecode", 4, samples=sampled, vae=vae).out()))
    (_, dense), (sparse_latent, sparse) = outputs
    compared = graph.add("DraftAttentionCompare", 5, box=(520, 560), room=ROOM, reference=dense, clip=sparse)
    graph.video(5, compared.out("side_by_side"), 16.0, "draft_attention/ab_compare")
    graph.add(
        "DraftAttentionPreview",
        6,
        box=(520, 700),
        room=ROOM,
        capture=captured.out("capture"),
        samples=sparse_latent,
        images=sparse,
    )
    graph.report(6, applied, sparse_latent)
    return graph


WORKFLOWS: tuple[Callable[[dict[str, Any]], Graph], ...] = (
    wan21_t2v,
    wan22_t2v,
    wan22_i2v,
    wan22_5b,
    hunyuan15,
    hunyuan,
    ab_compare,
    demo,
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write workflows/*.json.")
    parser.add_argument("object_info", type=Path, help="GET /object_info of the oldest supported ComfyUI")
    info = json.loads(parser.parse_args().object_info.read_text(encoding="utf-8"))
    for make in WORKFLOWS:
        graph = make(info)
        path = FOLDER / f"{graph.name}.json"
        path.write_text(json.dumps(graph.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
