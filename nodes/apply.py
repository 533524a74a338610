"""Node: DraftAttention Sparse."""

from __future__ import annotations

from functools import partial
from typing import Any

from comfy_api.latest import io

from ..draftattn_core.backends.registry import backend_names
from ..draftattn_core.run.settings import BITS, BUDGETS
from .browser.live_map import announce_map
from .browser.live_text import live_text
from .browser.run_log import announce_runs
from .browser.server import instance, running_job, running_title
from .browser.verdicts import announce_verdicts
from .host.adapter import apply_draft_attention
from .inputs.checks import apply_problems, judgement
from .inputs.overruled import BY_MAX_ERROR, BY_METHOD, BY_PRESET, BY_SCHEDULE, BY_SPEED, SPEED_REPLACES
from .inputs.presets import (
    BLOCKS,
    DEFAULT_MIN_TOKENS,
    METHOD_NAMES,
    NO_SPEED,
    PRESET_METHOD,
    PRESET_NAMES,
    SPEED_NAMES,
    TAIL_NAMES,
    Choices,
    parse_layers,
    parse_tile,
)

CATEGORY = "model/patch/draft attention"
Report = io.Custom("DRAFT_ATTENTION_REPORT")
SparsitySchedule = io.Custom("SPARSITY_SCHEDULE")
ProfileSocket = io.Custom("DRAFT_ATTENTION_PROFILE")


class ApplyDraftAttention(io.ComfyNode):
    """Patches a model; see `adapter.apply_draft_attention`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApplyDraftAttention",
            # Search ranks by the beginnings of ids and names, the shortest first, then by their words, aliases last.
            # The other nodes' ids begin with "draft": a longer name falls behind them for that word.
            display_name="DraftAttention Sparse",
            category=CATEGORY,
            description=(
                "Makes long and large videos faster: of the model's self-attention only some blocks are computed "
                "exactly, picked by a small draft map; every other block still counts through its mean and a linear "
                "term. Put it after LoRA, shift and attention nodes, before the sampler. The choices it comes with are "
                "a good start."
            ),
            search_aliases=[
                "apply draft attention",
                "draft",
                "draft attention",
                "sparse",
                "sparse attention",
                "block sparse attention",
                "speed up video",
                "faster video",
                "wan",
                "hunyuan",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A video model: Wan, HunyuanVideo, Kandinsky 5 and others. Wan 2.2 14B is two models: each "
                    "takes a node of its own.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(PRESET_NAMES),
                    default="auto",
                    tooltip="How much of the attention is computed exactly. auto goes by number of steps and video "
                    "size. quality, balanced, fast: fixed, quality computes the most and fast the least. paper: "
                    "DraftAttention as published. custom: what the advanced inputs sparsity and dense_start say. Those "
                    "after it are other published systems as their authors ran them; calibatt needs a profile with "
                    "masks.",
                    extra_dict={
                        "draftattention": {
                            "by_preset": BY_PRESET,
                            "by_schedule": BY_SCHEDULE,
                            "by_max_error": BY_MAX_ERROR,
                            "by_speed": BY_SPEED,
                            "speed_replaces": SPEED_REPLACES,
                            "by_method": BY_METHOD,
                        }
                    },
                ),
                io.Float.Input(
                    "sparsity",
                    default=0.75,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="For the preset custom and the published ones. Sparsity 0.75 = a quarter of the blocks is "
                    "computed exactly. 0 = everything dense, as without this node.",
                ),
                io.Float.Input(
                    "dense_start",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="For the preset custom: this share of the denoising, from its noisy start, stays dense: "
                    "computed in full. 0.1 = the first 2 of 20 steps, with the scheduler simple.",
                ),
                io.Combo.Input(
                    "tail",
                    options=list(TAIL_NAMES),
                    default="auto",
                    advanced=True,
                    tooltip="What stands in for the blocks that are not computed. auto measures on your model which "
                    "tail is most exact for each head and how much it should weigh. none drops them, as the "
                    "paper does.",
                ),
                io.Combo.Input(
                    "blocks",
                    options=list(BLOCKS),
                    default="128/64",
                    advanced=True,
                    tooltip="Tokens per query block / per key block. Smaller key blocks are more exact.",
                ),
                io.String.Input(
                    "tile",
                    default="auto",
                    advanced=True,
                    tooltip='Shape of a block in the video as frames x rows x columns, such as "4x4x8"; its product '
                    "is the larger block size.",
                ),
                io.String.Input(
                    "dense_layers",
                    default="",
                    advanced=True,
                    tooltip='Layers that always run dense, such as "0, -1" for the first and the last or "0, 47-49".',
                ),
                io.Int.Input(
                    "min_tokens",
                    default=DEFAULT_MIN_TOKENS,
                    min=0,
                    max=10_000_000,
                    advanced=True,
                    tooltip="Videos with fewer tokens (frames x rows x columns of the latent after patchify) run "
                    "dense: too little to gain. 81 frames of 832x480 are 32,760 tokens in Wan 2.1.",
                ),
                io.Boolean.Input(
                    "keep_first_frame",
                    default=False,
                    advanced=True,
                    tooltip="Every block always sees the first latent frame exactly; steadies image-to-video. A block "
                    "spans several frames, so this takes up about a fifth of the blocks of an 81-frame video.",
                ),
                io.Boolean.Input(
                    "keep_last_frame",
                    default=False,
                    advanced=True,
                    tooltip="Every block always sees the last latent frame exactly; for first-last-frame models.",
                ),
                io.Combo.Input(
                    "backend",
                    options=list(backend_names()),
                    default="auto",
                    advanced=True,
                    tooltip="What computes the sparse calls. auto takes the fastest that can serve them. kitchen is "
                    "the kernel that ComfyUI brings: it needs no Triton; the report says what a run gives up by it.",
                ),
                io.Boolean.Input(
                    "strict",
                    default=False,
                    advanced=True,
                    tooltip="Stop with an error before sampling if attention would run dense for a reason that you did "
                    "not ask for, such as a model that is not known. Otherwise such a run is right, but no faster.",
                ),
                SparsitySchedule.Input(
                    "schedule", optional=True, tooltip="From the Sparsity Scheduler node; replaces the preset's curve."
                ),
                ProfileSocket.Input(
                    "profile",
                    optional=True,
                    advanced=True,
                    tooltip="From the DraftAttention Profile node: what was measured of this model. Every head then "
                    "gets its density by it from the first sparse step on; the mean density stays.",
                ),
                io.Float.Input(
                    "max_error",
                    default=0.0,
                    min=0.0,
                    max=0.5,
                    step=0.005,
                    optional=True,
                    advanced=True,
                    tooltip="0.05 = each layer's attention within 5% of dense, as cheaply as that allows. It then "
                    "decides instead of the sparsity; a dense start stays. 0 = off.",
                ),
                io.Combo.Input(
                    "budgets",
                    options=list(BUDGETS),
                    default="off",
                    optional=True,
                    advanced=True,
                    tooltip="error = measure every head at the first sparse step and spend the same work where it "
                    "lowers the error most. off = one density for all heads, unless a profile is connected.",
                ),
                io.Combo.Input(
                    "speed",
                    options=list(SPEED_NAMES),
                    default=NO_SPEED,
                    optional=True,
                    tooltip="More speed than the preset alone: skipped steps and sparse attention are set together. "
                    "quality computes two fifths of the steps, densely; balanced computes half of them, with sparse "
                    "attention, and is no faster than quality where attention stays dense or its kernel is slow; fast "
                    "and max compute less. auto = quality, which by a hair came closest on the harder of two toy "
                    "models. off = the preset alone, every step computed. With another "
                    "speed than off, the presets auto to fast do not count; custom and a schedule keep their "
                    "densities; published presets never skip by speed. A Skip Steps node decides over the skipping, "
                    "and only it skips beside published presets.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHOD_NAMES),
                    default=PRESET_METHOD,
                    optional=True,
                    advanced=True,
                    tooltip="How the blocks that are computed are chosen. auto = as the preset does. The others choose "
                    "as a published system does, with this pack's tail behind them (tail auto), or with what the "
                    "input tail says. calibatt takes its masks from the profile.",
                ),
                io.Combo.Input(
                    "bits",
                    options=list(BITS),
                    default=BITS[0],
                    optional=True,
                    advanced=True,
                    tooltip="Precision of the attention scores. 16 = no INT8 or FP8. auto = INT8 on GeForce RTX "
                    "30 to 50, head by head, where a measurement on your model says that it costs next to nothing. 8 = "
                    "the same on any GPU that can. fp8 = 8, with values in FP8 on GeForce RTX 40 and 50. The Report "
                    "node says how many heads used it. Its speed has not been measured yet.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The patched model."),
                Report.Output(display_name="report", tooltip="For the DraftAttention Report and Capture nodes."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls, tile: str | None = None, blocks: str | None = None, dense_layers: str | None = None
    ) -> bool | str:
        return judgement(apply_problems(tile, blocks, dense_layers))

    @classmethod
    def execute(
        cls,
        model: Any,
        preset: str,
        sparsity: float,
        dense_start: float = 0.1,
        tail: str = "auto",
        blocks: str = "128/64",
        tile: str = "auto",
        dense_layers: str = "",
        min_tokens: int = DEFAULT_MIN_TOKENS,
        keep_first_frame: bool = False,
        keep_last_frame: bool = False,
        backend: str = "auto",
        strict: bool = False,
        schedule: Any = None,
        profile: Any = None,
        max_error: float = 0.0,
        budgets: str = "off",
        speed: str = NO_SPEED,
        method: str = PRESET_METHOD,
        bits: str = BITS[0],
    ) -> io.NodeOutput:
        problems = apply_problems(tile, blocks, dense_layers)
        if problems:  # values that came through links were not seen by validate_inputs
            raise ValueError("; ".join(problems.values()))
        choices = Choices(
            preset=preset,
            sparsity=sparsity,
            dense_start=dense_start,
            tail=tail,
            blocks=BLOCKS[blocks],
            tile=parse_tile(tile),
            dense_layers=parse_layers(dense_layers),
            min_tokens=min_tokens,
            anchor_first=keep_first_frame,
            anchor_last=keep_last_frame,
            backend=backend,
            schedule=schedule,
            strict=strict,
            profile=profile,
            max_error=max_error,
            budgets=budgets,
            speed=speed,
            method=method,
            bits=bits,
        )
        node_id = cls.hidden.unique_id
        server = None if node_id is None else instance()
        if server is None:
            return io.NodeOutput(*apply_draft_attention(model, choices))
        patched, handle = apply_draft_attention(model, choices, live_text(server, node_id))
        job, title = partial(running_job, server), partial(running_title, server, node_id)
        for announce in (announce_map, announce_verdicts):
            announce(handle.events, node_id, job=job, send=server.send_sync)
        announce_runs(handle, node_id, choices, job=job, title=title, send=server.send_sync)
        return io.NodeOutput(patched, handle)
