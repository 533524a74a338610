"""Node: answer evaluations of the model that a run can do without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..draftattn_core.run.step_cache import StepCacheSettings
from ..draftattn_core.run.step_cache.settings import PUBLISHED, PublishedModel
from .apply import CATEGORY, Report
from .browser.live_text import live_text
from .browser.server import instance
from .host.adapter import apply_skip_steps
from .inputs.checks import judgement, skip_problems
from .inputs.overruled import by_rule

AS_PUBLISHED: Mapping[str, PublishedModel] = {f"easycache, published for {model}": model for model in PUBLISHED}
RULES = ["spread", "forecast", "easycache", *AS_PUBLISHED]


class DraftAttentionSkipSteps(io.ComfyNode):
    """Patches a model; see `draftattn_core.run.step_cache`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DraftAttentionSkipSteps",
            display_name="Skip Steps (EasyCache / forecast)",
            category=CATEGORY,
            description=(
                "Makes sampling faster: the model is not run at every step, and what it would have said at a skipped "
                "one is predicted from the computed steps beside it. spread computes a planned share of the steps; "
                "forecast skips as long as its measured error allows; easycache is the published rule. Works alone and "
                "together with DraftAttention Sparse, before or after it. Runs of 4 steps have none to spare."
            ),
            search_aliases=["easycache", "step cache", "skip steps", "teacache", "speed up video"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Any model that ComfyUI samples with. Wan 2.2 14B is two models: each takes a node of its "
                    "own.",
                ),
                io.Combo.Input(
                    "rule",
                    options=RULES,
                    default="spread",
                    tooltip="Which steps are skipped. spread: all but a share of them, evenly over the run behind its "
                    "first steps; those between are predicted to first order in the noise level, and with the sampler "
                    "euler the next computed step makes good what they missed. forecast: steps whose expected error is "
                    "below the threshold. easycache: as published, by how much the latent moves. published for a "
                    "model: EasyCache with its threshold and first steps, the latter as their share of the 50 steps "
                    "they were published for. Inputs that a rule does not read are greyed out.",
                    extra_dict={"draftattention": {"by_rule": by_rule(RULES)}},
                ),
                io.Float.Input(
                    "threshold",
                    default=0.08,
                    min=0.0,
                    max=2.0,
                    step=0.005,
                    tooltip="For forecast and easycache: the error that skipped steps in a row may add up to, relative "
                    "to the model's output. Smaller is closer to the video without skipping; larger skips more; 0 "
                    "computes everything. EasyCache's published value for Wan 2.1 is 0.05.",
                ),
                io.Int.Input(
                    "first_steps",
                    default=3,
                    min=0,
                    max=1000,
                    tooltip="So many steps from the start are computed: there a model settles which video it becomes. "
                    "For spread they are part of its share, as far as enough of it is left for the rest of the run; "
                    "for forecast and easycache they always are (evaluations of the model, of which some samplers make "
                    "two a step). EasyCache is published with 10 of 50 for Wan 2.1, 5 of 50 for HunyuanVideo.",
                ),
                io.Int.Input(
                    "max_in_a_row",
                    default=4,
                    min=0,
                    max=1000,
                    advanced=True,
                    tooltip="For forecast and easycache: at most so many steps in a row are skipped; 0 for no limit, "
                    "as published.",
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Share of the denoising before which every step is computed: with 0.2 none of its first "
                    "fifth is skipped, with 0 any step may be.",
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Share of the denoising after which every step is computed: with 0.8 none of its last "
                    "fifth is skipped, with 1 any step but the last may be.",
                ),
                io.Boolean.Input(
                    "offload",
                    default=False,
                    advanced=True,
                    tooltip="Keep the remembered latents in main memory instead of the GPU's: two of each condition, "
                    "three of the one that decides by EasyCache's rule.",
                ),
                io.Float.Input(
                    "share",
                    default=0.4,
                    min=0.05,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="For spread: share of the steps that are computed. 0.4 computes 8 of 20 steps, the first "
                    "and the last among them. Smaller is faster and changes the video more; 1 computes all of them.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The patched model."),
                Report.Output(
                    display_name="report",
                    tooltip="For the DraftAttention Report node: what was skipped and how far the predictions were "
                    "off, with or without DraftAttention Sparse.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, start: float | None = None, end: float | None = None) -> bool | str:
        return judgement(skip_problems(start, end))

    @classmethod
    def execute(
        cls,
        model: Any,
        rule: str,
        threshold: float,
        first_steps: int,
        max_in_a_row: int = 4,
        start: float = 0.0,
        end: float = 1.0,
        offload: bool = False,
        share: float = 0.4,
    ) -> io.NodeOutput:
        problems = skip_problems(start, end)
        if problems:  # values that came through links were not seen by validate_inputs
            raise ValueError("; ".join(problems.values()))
        settings = _settings(rule, threshold, first_steps, max_in_a_row, (start, end), offload, share)
        node_id = cls.hidden.unique_id
        server = None if node_id is None else instance()
        if server is None:
            return io.NodeOutput(*apply_skip_steps(model, settings))
        return io.NodeOutput(*apply_skip_steps(model, settings, live_text(server, node_id)))


def _settings(
    rule: str,
    threshold: float,
    first: int,
    max_skips: int,
    window: tuple[float, float],
    offload: bool,
    share: float = 0.4,
) -> StepCacheSettings:
    """What the node's inputs ask for; what a rule does not read stays at its default.

    Raises:
        ValueError: if a value is out of range.
    """
    if rule in AS_PUBLISHED:
        settings = StepCacheSettings.published(AS_PUBLISHED[rule], as_share=True)
    elif rule == "spread":
        settings = StepCacheSettings("spread", first=first, share=share)
    else:
        settings = StepCacheSettings(rule, threshold, first, max_skips=max_skips or None)  # type: ignore[arg-type]
    return replace(settings, windows=(window,), offload=offload)
