"""Node: DraftAttention Report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..draftattn_core.views.charts import report_sheet
from .apply import CATEGORY, Report
from .display.pictures import to_image
from .display.report_text import predicted_saving, report_text
from .display.themed_picture import themed_picture
from .host.runs import ReportHandle
from .inputs.checks import judgement, report_problems
from .words import LINES, Joined, Words, told


class DraftAttentionReport(io.ComfyNode):
    """Shows what a run did: text, picture, and JSON on request."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DraftAttentionReport",
            display_name="DraftAttention Report",
            category=CATEGORY,
            description=(
                "What the last run of the patched model did: how dense every step and layer was, why calls ran dense, "
                "time per step, and the attention error measured on this model. Connect `after` to the sampler's "
                "output, so that this node waits for the run."
            ),
            search_aliases=["draft attention status", "sparse attention report", "density map"],
            inputs=[
                Report.Input("report", tooltip="From DraftAttention Sparse or Skip Steps."),
                io.AnyType.Input(
                    "after", tooltip="Anything the sampler leads to, such as its LATENT: the report is drawn after it."
                ),
                io.Boolean.Input(
                    "save_json", default=False, tooltip="Also write the figures as a JSON file to the output folder."
                ),
                io.String.Input(
                    "filename_prefix",
                    default="draft_attention/report",
                    advanced=True,
                    tooltip="Folder and name of the JSON file inside the output folder; a number is appended.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="text", tooltip="The report in words."),
                io.Image.Output(display_name="picture", tooltip="Density by step and layer, time per step, tails."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        return judgement(report_problems(filename_prefix))

    @classmethod
    def execute(
        cls, report: ReportHandle, after: Any, save_json: bool = False, filename_prefix: str = "draft_attention/report"
    ) -> io.NodeOutput:
        run = report.report
        text = report_text(run)
        if save_json:
            values = {**run.to_dict(), "predicted_saving": predicted_saving(run)}
            saved = Words("report_saved_as", path=str(_save(values, filename_prefix)))
            text = Joined([text, "", saved], LINES)
        whole = report_sheet(run)
        shown = themed_picture(lambda look: report_sheet(run, look=look), whole)
        return io.NodeOutput(str(text), to_image(whole), ui={**shown, **told(text)})


def _save(values: dict[str, Any], prefix: str) -> Path:
    """Write JSON to ComfyUI's output folder under the next free number."""
    import folder_paths

    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    target = Path(folder)
    # ComfyUI counts names of the form NAME_00001_.ext; so the file has that form.
    path = target / f"{name}_{counter:05}_.json"
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return path
