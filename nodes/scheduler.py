"""Node: Sparsity Scheduler."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..draftattn_core.views.charts import even_steps, schedule_curve
from .apply import CATEGORY, SparsitySchedule
from .display.pictures import to_image
from .host.layouts import layer_count
from .host.runs import Trajectory
from .inputs.checks import CUSTOM_POINTS, judgement, scheduler_problems
from .inputs.curves import (
    CURVES,
    PRESET_SHAPES,
    DrawnCurve,
    SparsityCurve,
    drawn_points,
    parse_bands,
    parse_points,
)
from .inputs.overruled import BY_CURVE
from .inputs.presets import parse_layers

POINTS = "0:1, 0.15:1, 0.15:0.4, 0.25:0.2"


class SparsityScheduler(io.ComfyNode):
    """Makes a schedule and draws it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparsityScheduler",
            display_name="Sparsity Scheduler",
            category=CATEGORY,
            description=(
                "How dense the attention may be over the denoising, by noise level: start dense, ramp down, stay "
                "sparse. The curve belongs to the noise, not to step numbers, so one schedule serves both experts of "
                "Wan 2.2 and both halves of a split sampler. Density 0.2 = a fifth of the blocks is computed exactly."
            ),
            search_aliases=["sparsity schedule", "sparsity curve", "attention schedule", "draft attention"],
            inputs=[
                io.Combo.Input(
                    "curve",
                    options=list(CURVES),
                    default="balanced",
                    tooltip="quality: density 0.30 after a dense start of 15%. balanced: 0.20 after 10%. fast: 0.15 "
                    "after 5%. Runs of 8 steps and fewer start at twice the density instead of a dense step. custom "
                    "points: the points below.",
                    extra_dict={"draftattention": {"by_curve": BY_CURVE, "presets": PRESET_SHAPES}},
                ),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=1000,
                    tooltip="For the picture only: the steps marked on the curve if no sigmas are connected. While "
                    "sampling the sampler's own number of steps counts.",
                ),
                io.Float.Input(
                    "density",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Density after the ramp, for quality, balanced and fast. 0 = the curve's own. "
                    "0.25 = a quarter of the blocks is computed exactly (sparsity 0.75).",
                ),
                io.String.Input(
                    "points",
                    default=POINTS,
                    advanced=True,
                    tooltip="For custom points: progress:density pairs, straight lines between them. Progress 0 is "
                    "pure noise, 1 the finished video. Two pairs at one progress make a step.",
                ),
                io.Float.Input(
                    "end_share",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="The last share of the denoising gets at least end_density. 0 = no such end.",
                ),
                io.Float.Input(
                    "end_density",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Density of the last steps, see end_share. 1 = dense.",
                ),
                io.String.Input(
                    "layer_bands",
                    default="",
                    advanced=True,
                    tooltip='Layers that get more or less: first-last:factor on the density, such as "10-20:1.5" or '
                    '"-8..-1:2" for the last 8.',
                ),
                io.String.Input(
                    "dense_layers",
                    default="",
                    advanced=True,
                    tooltip='Layers that always run dense, such as "0, -1" for the first and the last. Goes before '
                    "the list on DraftAttention Sparse.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="For the picture only: the model whose noise levels (shift included) place the steps on "
                    "the curve, and whose layers are counted.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="For the picture only: the sampler's sigmas, whose steps are marked. Needs the model too.",
                ),
                # Of newer hosts; the type is named, so that older ones load the node too. A socket, not a widget.
                io.Custom("CURVE").Input(
                    "drawn_curve",
                    optional=True,
                    tooltip="From ComfyUI's Curve Editor, in place of the curve here: to the right the denoising from "
                    "noise to video, upwards the density.",
                    extra_dict={"forceInput": True},
                ),
            ],
            outputs=[
                SparsitySchedule.Output(display_name="schedule", tooltip="For DraftAttention Sparse."),
                io.Image.Output(display_name="curve", tooltip="Picture of the curve with the sampler's steps."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls,
        curve: str | None = None,
        points: str | None = None,
        layer_bands: str | None = None,
        dense_layers: str | None = None,
    ) -> bool | str:
        return judgement(scheduler_problems(curve, points, layer_bands, dense_layers))

    @classmethod
    def execute(
        cls,
        curve: str,
        steps: int,
        density: float,
        points: str = POINTS,
        end_share: float = 0.0,
        end_density: float = 0.5,
        layer_bands: str = "",
        dense_layers: str = "",
        model: Any = None,
        sigmas: Any = None,
        drawn_curve: DrawnCurve | None = None,
    ) -> io.NodeOutput:
        problems = scheduler_problems(curve, points, layer_bands, dense_layers)
        if problems:  # values that came through links were not seen by validate_inputs
            raise ValueError("; ".join(problems.values()))
        if drawn_curve is not None:
            curve, chosen = CUSTOM_POINTS, drawn_points(drawn_curve)
        else:
            chosen = parse_points(points) if curve == CUSTOM_POINTS else ()
        spec = SparsityCurve(
            curve=curve,
            density=density,
            points=chosen,
            end_share=end_share,
            end_density=end_density,
            dense_layers=parse_layers(dense_layers),
            bands=parse_bands(layer_bands),
        )
        progress, whole_steps, title = sampler_steps(steps, model, sigmas)
        layers = 0 if model is None else layer_count(model.model.diffusion_model)
        picture = to_image(schedule_curve(spec.resolve(whole_steps), progress, layers=layers, title=title))
        # Where the steps and the points stand, for the curve in the browser.
        placed = {"steps": whole_steps, "places": list(progress), "points": list(chosen)}
        return io.NodeOutput(spec, picture, ui={"draftattention_steps": [placed]})


def sampler_steps(steps: int, model: Any, sigmas: Any) -> tuple[tuple[float, ...], int, str]:
    """Progress of every step to mark, steps of the whole trajectory, and the picture's title.

    Args:
        steps: how many, where no sigmas are given.
        model: the host's ModelPatcher, or None: then the steps are spread evenly.
        sigmas: (steps + 1,) of a sampler, or None: then those of the host's `simple` scheduler.

    Raises:
        ValueError: if there are sigmas but no model to place them.
    """
    if model is None:
        if sigmas is not None:
            raise ValueError("Sparsity Scheduler: sigmas can be placed only with a model: connect the model too")
        return even_steps(steps), steps, f"Sparsity schedule, {steps} even steps"
    sampling = model.get_model_object("model_sampling")
    source = "the connected sigmas"
    if sigmas is None:
        import comfy.samplers

        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", steps)
        source = "simple scheduler"
    trajectory = Trajectory(sampling.percent_to_sigma, tuple(float(sigma) for sigma in sigmas))
    progress = tuple(trajectory.progress(sigma) for sigma in trajectory.schedule[:-1])
    return progress, trajectory.whole_steps(), f"Sparsity schedule, {len(progress)} steps of {source}"
