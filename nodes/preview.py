"""Nodes: DraftAttention Capture, which notes one call while sampling, and DraftAttention Preview, which draws it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from comfy_api.latest import io

from ..draftattn_core.run.capture import CallCapture
from ..draftattn_core.run.coarse_maps import CoarseMaps
from ..draftattn_core.run.events import CallDone
from ..draftattn_core.views.charts import block_overlays, block_sheet, message_picture
from ..draftattn_core.views.charts.clips import Frames
from .apply import CATEGORY, Report
from .browser.draft_maps import send_maps
from .display.pictures import from_image, latent_preview, to_image
from .host.runs import ReportHandle

Capture = io.Custom("DRAFT_ATTENTION_CAPTURE")
KEY = "draft_attention_capture"
WRAPPER = "outer_sample"


@dataclass
class CaptureHandle:
    """What Capture hands to Preview.

    Attributes:
        capture: the call, once it was seen.
        latent_format: the model's, for the colours of the preview.
        maps: coarser maps of calls spread over the run.
        files: those that were written for the browser.
    """

    capture: CallCapture
    latent_format: Any
    maps: CoarseMaps = field(default_factory=CoarseMaps)
    files: dict[str, Any] = field(default_factory=dict)


def capture_calls(model: Any, handle: ReportHandle, step: int, layer: int) -> tuple[Any, CaptureHandle]:
    """A clone of a patched model that keeps one sparse call of every run whole and some coarsely; and their handle.

    Args:
        model: the host's ModelPatcher, after DraftAttention Sparse.
        handle: DraftAttention Sparse's.
        step: from 0, negative for the last one.
        layer: from 0, negative from the end.
    """
    kept = CaptureHandle(CallCapture(step, layer), model.get_model_object("latent_format"), CoarseMaps(layer))

    def listen(executor: Any, *args: Any, **kwargs: Any) -> Any:
        kept.capture.clear()
        kept.maps.clear()
        kept.files.clear()
        forget = [handle.events.subscribe(CallDone, listener) for listener in (kept.capture, kept.maps)]
        try:
            return executor(*args, **kwargs)
        finally:
            for end in forget:
                end()

    patched = model.clone()
    patched.remove_wrappers_with_key(WRAPPER, KEY)
    patched.add_wrapper_with_key(WRAPPER, KEY, listen)
    return patched, kept


class DraftAttentionCapture(io.ComfyNode):
    """Keeps the draft map and the kept blocks of one call."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DraftAttentionCapture",
            display_name="DraftAttention Capture",
            category=CATEGORY,
            description=(
                "Keeps the draft map and the kept blocks of one attention call for DraftAttention Preview. Put it "
                "between DraftAttention Sparse and the sampler. Coarser maps of up to 25 other calls are kept to look "
                "around in Preview. Costs a few small copies per run."
            ),
            search_aliases=["capture attention", "attention map"],
            inputs=[
                io.Model.Input("model", tooltip="From DraftAttention Sparse."),
                Report.Input("report", tooltip="From the same DraftAttention Sparse."),
                io.Int.Input(
                    "step",
                    default=-1,
                    min=-1,
                    max=1000,
                    tooltip="Step as numbered in the report's picture, from 1. -1 = the last sparse one.",
                ),
                io.Int.Input(
                    "layer",
                    default=0,
                    min=-200,
                    max=200,
                    tooltip="Layer as numbered in the report's picture, from 0. -1 = the last one.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="To the sampler."),
                Capture.Output(display_name="capture", tooltip="For DraftAttention Preview."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, report: ReportHandle, step: int, layer: int) -> io.NodeOutput:
        return io.NodeOutput(*capture_calls(model, report, step - 1 if step > 0 else -1, layer))


class DraftAttentionPreview(io.ComfyNode):
    """Draws a captured call over the latent preview."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DraftAttentionPreview",
            display_name="DraftAttention Preview",
            category=CATEGORY,
            description=(
                "Where one part of the video looks: click a place on the node, and choose step, layer and head without "
                "a new run. The outputs show the draft map and the kept blocks of the captured call, drawn over the "
                "latent preview, with the head's whole draft map."
            ),
            search_aliases=["attention map", "draft map", "show sparse attention", "kept blocks"],
            inputs=[
                Capture.Input("capture", tooltip="From DraftAttention Capture."),
                io.Latent.Input("samples", tooltip="The sampler's output: drawn below the map, without a VAE."),
                io.Int.Input("head", default=0, min=0, max=255, tooltip="Attention head, from 0."),
                *(
                    io.Float.Input(
                        name,
                        default=0.5,
                        min=0.0,
                        max=1.0,
                        step=0.01,
                        tooltip=f"Which place looks: {meaning}.",
                    )
                    for name, meaning in (
                        ("time", "0 first frame, 1 last frame"),
                        ("y", "0 top, 1 bottom"),
                        ("x", "0 left, 1 right"),
                    )
                ),
                io.Image.Input(
                    "images", optional=True, tooltip="The decoded video, drawn below the map in place of the latent."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="One picture with everything."),
                io.Image.Output(display_name="draft_map", tooltip="Every latent frame under the draft map."),
                io.Image.Output(display_name="kept_blocks", tooltip="Every latent frame, skipped blocks dark."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        capture: CaptureHandle,
        samples: Any,
        head: int,
        time: float,
        y: float,
        x: float,
        images: Any = None,
    ) -> io.NodeOutput:
        if images is not None:
            frames = from_image(images)
        else:
            frames = latent_preview(samples["samples"], capture.latent_format)
        drawn = [to_image(picture) for picture in draw(capture.capture, frames, head, (time, y, x))]
        return io.NodeOutput(*drawn, ui={"draftattention_maps": [send_maps(capture.maps, capture.files, frames)]})


def draw(
    wanted: CallCapture, frames: Frames, head: int, place: tuple[float, float, float]
) -> tuple[Any, Frames, Frames]:
    """Sheet, heat and kept blocks; a picture that says why not, three times, if there is nothing to draw."""
    taken = wanted.taken
    message = wanted.missing() if taken is None else ""
    if taken is not None and head >= taken.heads:
        message = f"There is no head {head}: this layer has heads 0 to {taken.heads - 1}."
    if taken is None or message:
        picture = to_frames(message_picture(message))
        return picture, picture, picture
    block = taken.query_block(*place)
    return (block_sheet(taken, head, block, frames), *block_overlays(taken, head, block, frames))


def to_frames(picture: Any) -> Frames:
    import numpy as np

    return np.array(picture)[None]
