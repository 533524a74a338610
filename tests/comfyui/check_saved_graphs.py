"""Runs in ComfyUI's Python: graphs saved with 0.1.0 load with every value in its place and give the same video.

The widgets are those of the last commit before the pack was rearranged (5cbce50, "select: a map's size as it is"), and
the figures of the video were made by that commit's node on ComfyUI 0.33.0: nothing here was computed by what it checks.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import host
import torch
from toy_runs import run, wan

CHECKS, check = host.registry()

# Names in the order of the browser's list of values, with a value that is none of the defaults where one may be chosen.
SAVED: Mapping[str, Mapping[str, Any]] = {
    "ApplyDraftAttention": {
        "preset": "custom",
        "sparsity": 0.7,
        "dense_start": 0.25,
        "tail": "linear1",
        "blocks": "128/64",
        "tile": "2x8x8",
        "dense_layers": "",
        "min_tokens": 0,
        "keep_first_frame": False,
        "keep_last_frame": False,
        "backend": "auto",
        "strict": False,
    },
    "SparsityScheduler": {
        "curve": "custom points",
        "steps": 30,
        "density": 0.3,
        "points": "0:1, 0.2:0.4",
        "end_share": 0.1,
        "end_density": 0.6,
        "layer_bands": "0-1: 2",
        "dense_layers": "0",
    },
    # Came after 0.1.0: as it was before it had the rule spread.
    "DraftAttentionSkipSteps": {
        "rule": "forecast",
        "threshold": 0.05,
        "first_steps": 4,
        "max_in_a_row": 3,
        "start": 0.1,
        "end": 0.9,
        "offload": True,
    },
    "DraftAttentionReport": {"save_json": True, "filename_prefix": "mine/report"},
    "DraftAttentionCapture": {"step": 4, "layer": -2},
    "DraftAttentionPreview": {"head": 3, "time": 0.1, "y": 0.2, "x": 0.3},
    "DraftAttentionCompare": {"reference_label": "a", "clip_label": "b"},
    "DraftAttentionDoctor": {},
    "DraftAttentionDemoPrompt": {"prompt": "both"},
}
# Outputs by slot: links of a saved graph name slots.
SLOTS: Mapping[str, tuple[str, ...]] = {
    "ApplyDraftAttention": ("model", "report"),
    "DraftAttentionReport": ("text", "picture"),
    "DraftAttentionCapture": ("model", "capture"),
}
# out[0, ::5, 2, 7, ::13] of the run below.
VIDEO = (
    (-16.58243, 3.33626, -20.940395, 2.506778),
    (7.065971, 5.070234, 9.393599, 4.347894),
    (-28.851097, 4.556163, -31.804028, 0.318709),
    (8.861223, 7.255272, 8.573298, 8.417477),
)
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def nodes() -> dict[str, Any]:
    extension = asyncio.run(sys.modules[host.PACK].comfy_entrypoint())
    return {cls.define_schema().node_id: cls for cls in asyncio.run(extension.get_node_list())}


def widgets(cls: Any) -> list[tuple[str, dict[str, Any]]]:
    """Name and options of a node's widgets, in the order in which the browser saves their values."""
    described = cls.define_schema().get_v1_info(cls).input
    found = []
    for part in ("required", "optional"):
        for name, (kind, *options) in described.get(part, {}).items():
            if kind in WIDGETS or isinstance(kind, list):
                found.append((name, {**(options[0] if options else {}), "part": part}))
    return found


def loaded(cls: Any, values: list[Any]) -> dict[str, Any]:
    """Values by name as the browser gives them to a node's widgets; those it has none for keep their default."""
    named = {name: options.get("default") for name, options in widgets(cls)}
    named.update(zip(named, values))
    return named


@check("graphs saved with 0.1.0: every widget's value in its place, what is new at its default, links at their slots")
def _() -> None:
    found = nodes()
    assert set(SAVED) <= set(found), "a node of 0.1.0 is gone"
    for name, saved in SAVED.items():
        assert [widget for widget, _ in widgets(found[name])][: len(saved)] == list(saved), name
        given = loaded(found[name], list(saved.values()))
        assert {key: given[key] for key in saved} == saved, name
        for widget, options in widgets(found[name])[len(saved) :]:
            assert options["part"] == "optional" and "default" in options, (name, widget)
        names = tuple(item.display_name for item in found[name].define_schema().outputs)
        assert names[: len(SLOTS.get(name, ()))] == SLOTS.get(name, ()), (name, names)


def node(name: str) -> Any:
    """A node of the pack, to be executed as in a graph without a browser."""
    cls = nodes()[name]
    cls.hidden = SimpleNamespace(unique_id=None)
    return cls


@check("a node whose graph holds only what an earlier version saved does as with what is new at its default")
def _() -> None:
    # A graph in API format holds what was saved and nothing else; the browser fills in what is new.
    cls, saved = node("ApplyDraftAttention"), SAVED["ApplyDraftAttention"]
    made = [cls.execute(wan(), **given).args[0] for given in (saved, loaded(cls, list(saved.values())))]
    chosen = [host.pack("nodes.host.adapter")._adapter_of(patched).choices for patched in made]
    assert chosen[0] == chosen[1]
    assert all(getattr(chosen[0], name) == saved[name] for name in ("preset", "sparsity", "dense_start", "tail"))

    cls, saved = node("DraftAttentionSkipSteps"), SAVED["DraftAttentionSkipSteps"]
    asked = host.pack("draftattn_core.run.step_cache").StepCacheSettings(
        "forecast", 0.05, 4, max_skips=3, windows=((0.1, 0.9),), offload=True
    )
    for given in (saved, loaded(cls, list(saved.values()))):
        patched = cls.execute(wan(), **given).args[0]
        found = host.pack("nodes.host.skipping").chosen(patched.model_options["transformer_options"])
        assert found == asked, (given, found)


@check("every node of the pack takes an input that a graph leaves out to be the default that its widget shows")
def _() -> None:
    checked = 0
    for name, cls in nodes().items():
        parameters = inspect.signature(cls.execute).parameters
        described = cls.define_schema().get_v1_info(cls).input
        shown = {key: options.get("default") for key, options in widgets(cls)}
        assert set(parameters) == set(described.get("required", {})) | set(described.get("optional", {})), name
        for key, parameter in parameters.items():
            left_out = parameter.default is not inspect.Parameter.empty
            assert left_out or key in described["required"], f"{name} fails where a graph leaves out {key}"
            if left_out:
                # A socket that nothing is connected to is None.
                assert parameter.default == shown.get(key), (name, key, parameter.default, shown.get(key))
                assert type(parameter.default) is type(shown.get(key)), (name, key)
                checked += 1
    assert checked > 30, checked


@check("a graph saved with 0.1.0 gives the same video")
def _() -> None:
    latent = torch.zeros(1, 16, 6, 40, 40)
    patched, handle = node("ApplyDraftAttention").execute(wan(), **SAVED["ApplyDraftAttention"]).args
    out = run(patched, latent, steps=4)
    expected = torch.tensor(VIDEO).reshape(-1)

    def off(video: torch.Tensor) -> float:
        return float((video[0, ::5, 2, 7, ::13].flatten() - expected).abs().max())

    assert off(out) < 2e-4, off(out)
    dense = off(run(wan(), latent, steps=4))
    assert dense > 2e-2, f"the dense video is as near: {dense}"
    # The dense start of 0.1.0, and nothing skipped.
    assert handle.report.calls_sparse == 6 and handle.report.skipped == 0, handle.report.summary()
