"""Graphs for the photographs in the help pages: the nodes that the demo's workflow does not have, on the tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tools.workflows.demo import WEIGHTS
from tools.workflows.graph import Graph

# The nodes to photograph, by graph.
SHOWN = {
    "help_skips_and_maps": ("DraftAttentionSkipSteps", "DraftAttentionCapture", "DraftAttentionPreview"),
    "help_measured": ("DraftAttentionCalibrate",),
    "help_doctor": ("DraftAttentionDoctor",),
    "help_profile": ("DraftAttentionProfile",),
}


def help_graph(info: dict[str, Any]) -> Iterator[Graph]:
    """The graphs, in the order in which they have to run: the last one shows what the one before has written."""
    yield skips_and_maps(info)
    yield measured(info)
    graph = Graph("help_doctor", info)
    graph.add("DraftAttentionDoctor", 0, box=(560, 420))
    yield graph
    graph = Graph("help_profile", info)
    graph.add("DraftAttentionProfile", 0, box=(480, 640), profile="tiny wan")
    yield graph


def sampled(graph: Graph, model: Any, size: tuple[int, int, int] = (480, 320, 17)) -> Any:
    """The latent of a short run of a width, height and number of frames."""
    positive = graph.add("DraftAttentionDemoPrompt", 0, prompt="both").out()
    latent = graph.add("EmptyHunyuanLatentVideo", 0, width=size[0], height=size[1], length=size[2]).out()
    sampler: dict[str, Any] = {"seed": 7, "steps": 8, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    inputs = {"model": model, "positive": positive, "negative": positive, "latent_image": latent}
    return graph.add("KSampler", 2, **inputs, **sampler).out()


def skips_and_maps(info: dict[str, Any]) -> Graph:
    graph = Graph("help_skips_and_maps", info)
    loaded = graph.add("UNETLoader", 0, models=[WEIGHTS], unet_name=WEIGHTS["name"]).out()
    applied = graph.add("ApplyDraftAttention", 0, model=loaded, preset="custom", min_tokens=0, box=(340, 900))
    skipping = graph.add("DraftAttentionSkipSteps", 1, model=applied.out("model")).out("model")
    captured = graph.add(
        "DraftAttentionCapture", 1, model=skipping, report=applied.out("report"), step=-1, layer=1, box=(340, None)
    )
    out = sampled(graph, captured.out("model"))
    graph.add("DraftAttentionPreview", 3, box=(480, 640), capture=captured.out("capture"), samples=out)
    return graph


def measured(info: dict[str, Any]) -> Graph:
    graph = Graph("help_measured", info)
    loaded = graph.add("UNETLoader", 0, models=[WEIGHTS], unet_name=WEIGHTS["name"]).out()
    observed = graph.add("DraftAttentionCalibrate", 1, model=loaded, name="tiny wan", prompt="both", box=(380, 300))
    out = sampled(graph, observed.out(), (192, 128, 9))
    graph.add("SaveLatent", 2, samples=out)
    return graph
