"""Node: DraftAttention Compare."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .apply import CATEGORY
from .browser.temp_files import keep_for_browser
from .display.clip_sheet import clip_sheet
from .display.comparison import compare
from .display.pictures import to_image
from .words import told


class DraftAttentionCompare(io.ComfyNode):
    """Same-seed A/B: figures and a side-by-side picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DraftAttentionCompare",
            display_name="DraftAttention Compare",
            category=CATEGORY,
            description=(
                "Compares two runs of the same seed, dense and sparse say: PSNR, SSIM, flicker and a side-by-side "
                "clip with the difference. Takes two latents or two image batches."
            ),
            search_aliases=["psnr", "ssim", "compare videos", "a/b", "quality metric", "flicker"],
            inputs=[
                io.MultiType.Input(
                    "reference", types=[io.Latent, io.Image], tooltip="What to compare against: the dense run."
                ),
                io.MultiType.Input("clip", types=[io.Latent, io.Image], tooltip="What is compared: the sparse run."),
                io.String.Input("reference_label", default="dense", tooltip="Written above the reference."),
                io.String.Input("clip_label", default="sparse", tooltip="Written above the clip."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="For latents: shows them in the colours of the model's own preview. Without it their "
                    "principal components are shown. The figures do not depend on it.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="text", tooltip="The figures in words."),
                io.Image.Output(display_name="side_by_side", tooltip="Reference, clip and difference, every frame."),
                io.Float.Output(display_name="psnr", tooltip="In dB; higher is closer."),
                io.Float.Output(display_name="ssim", tooltip="0 to 1; higher is closer."),
                io.Float.Output(
                    display_name="flicker",
                    tooltip="Frame-to-frame change the reference does not have; lower is better.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        reference: Any,
        clip: Any,
        reference_label: str = "dense",
        clip_label: str = "sparse",
        model: Any = None,
    ) -> io.NodeOutput:
        latent_format = None if model is None else model.get_model_object("latent_format")
        found = compare(reference, clip, latent_format, (reference_label, clip_label))
        sheets = [clip_sheet(clip) for clip in found.clips]
        shown = [
            {**keep_for_browser(sheet.data, sheet.suffix), **sheet.told(), "label": label}
            for sheet, label in zip(sheets, (reference_label, clip_label), strict=True)
        ]
        text = found.text()
        return io.NodeOutput(
            str(text),
            to_image(found.frames),
            found.psnr_db,
            found.ssim,
            0.0 if found.flicker is None else found.flicker,
            ui={"draftattention_clips": shown, **told(text)},
        )
