"""Runs in ComfyUI's Python: the nodes that schedule, report, draw and compare, executed on a tiny Wan model."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import host
import torch
from model_cases import CASES

CHECKS, check = host.registry()


def node(module: str, name: str) -> Any:
    """A node class as the host calls it: an executable clone with its hidden inputs, outside any workflow."""
    cls = getattr(host.pack(f"nodes.{module}"), name)
    prepared = cls.PREPARE_CLASS_CLONE(None)
    prepared.hidden = SimpleNamespace(unique_id=None, prompt=None, extra_pnginfo=None)
    return prepared


def run(module: str, name: str, **inputs: Any) -> tuple[Any, ...]:
    """Outputs of a node; its previews go to a temporary folder."""
    import folder_paths

    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_temp_directory(folder)
        return node(module, name).EXECUTE_NORMALIZED(**inputs).result


def wan() -> tuple[Any, Any, Any]:
    """A tiny Wan model, its latent and its conditioning."""
    case = CASES[0]
    return host.build(case.config, case.unet), torch.zeros(1, 16, 3, 12, 16), case.conditioning()


def sampled(**choices: Any) -> tuple[Any, Any, torch.Tensor]:
    """Model, report handle and output of a sparse run of 3 steps."""
    model, latent, conditioning = wan()
    patched, handle = host.apply(model, **choices)
    return patched, handle, host.sample(patched, latent, conditioning, steps=3)


def schemas() -> dict[str, Any]:
    """Schema of every node, by its id."""
    extension = host.pack("nodes.extension").DraftAttentionExtension()
    nodes = asyncio.run(extension.get_node_list())
    found = {cls.GET_SCHEMA().node_id: cls.GET_SCHEMA() for cls in nodes}
    assert len(found) == len(nodes) == 11
    return found


@check("every node has a description, search aliases, one category, and a tooltip on every input and output")
def schema_texts() -> None:
    for name, schema in schemas().items():
        assert schema.category == "model/patch/draft attention", name
        assert schema.description, name
        assert schema.search_aliases or schema.is_dev_only, name
        silent = [item.id for item in [*schema.inputs, *schema.outputs] if not item.tooltip]
        assert not silent, (name, silent)


@check("Apply shows one preset, everything else is advanced, and sparsity 0.75 is explained in words")
def apply_inputs() -> None:
    inputs = {item.id: item for item in schemas()["ApplyDraftAttention"].inputs}
    simple = [name for name, item in inputs.items() if not item.advanced]
    assert simple == ["model", "preset", "schedule", "speed"], simple
    published = ["sparse videogen", "radial attention", "adaspa", "svg-ear", "calibatt"]
    assert inputs["preset"].options == ["auto", "quality", "balanced", "fast", "paper", "custom", *published]
    assert inputs["preset"].default == "auto" and inputs["schedule"].optional
    asked = {"sparsity", "tile", "tail", "blocks", "dense_layers", "min_tokens", "keep_first_frame", "keep_last_frame"}
    assert asked | {"backend"} <= set(inputs)
    assert "0.75 = a quarter of the blocks is computed exactly" in inputs["sparsity"].tooltip
    assert '"0, -1"' in inputs["dense_layers"].tooltip


@check("every node has a help page, and every text of its schema a translation in every language that is shipped")
def help_and_locales() -> None:
    found = schemas()
    locales = host.PACK_ROOT / "locales"
    languages = [path.name for path in locales.iterdir() if path.name != "en"]
    assert sorted(languages) == ["ja", "ko", "zh"], languages
    for language in languages:
        translated = json.loads((locales / language / "nodeDefs.json").read_text(encoding="utf-8"))
        assert set(translated) == set(found), language
        for schema in found.values():
            assert translation_problems(schema, translated[schema.node_id]) == [], (language, schema.node_id)
    for schema in found.values():
        if not schema.is_dev_only:
            page = (host.PACK_ROOT / "web" / "docs" / f"{schema.node_id}.md").read_text(encoding="utf-8")
            assert page.startswith(f"# {schema.display_name}\n"), schema.node_id
            unexplained = [item.id for item in schema.inputs if item.advanced and f"**{item.id}**" not in page]
            assert not unexplained or schema.node_id in ("ApplyDraftAttention", "DraftAttentionReport"), unexplained


def translation_problems(schema: Any, texts: dict[str, Any]) -> list[str]:
    """What is missing from a node's texts in a language, and what is left over."""
    pairs: dict[str, tuple[str, Any]] = {"description": (schema.description, texts.get("description"))}
    pairs["display_name"] = (schema.display_name, texts.get("display_name"))
    slots = {
        **{f"inputs.{item.id}": (item, texts.get("inputs", {}).get(item.id, {})) for item in schema.inputs},
        **{f"outputs.{slot}": (item, texts["outputs"].get(str(slot), {})) for slot, item in enumerate(schema.outputs)},
    }
    for place, (item, said) in slots.items():
        pairs[f"{place}.name"] = ("", said.get("name"))
        pairs[f"{place}.tooltip"] = (item.tooltip, said.get("tooltip"))
    choices = {f"inputs.{item.id}.tooltip": getattr(item, "options", None) or () for item in schema.inputs}
    problems = [f"{place} is missing" for place, (_, said) in pairs.items() if not said]
    for place, (english, said) in pairs.items():
        # Examples to write, figures, and the choices that are explained are the same in every language.
        same = [*re.findall(r'"[^"]+"', english), *re.findall(r"\d+(?:\.\d+)?", english)]
        same += [
            choice for choice in choices.get(place, ()) if re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", english)
        ]
        problems += [f"{place} lacks {part}" for part in same if said and part not in said]
    known = {f"inputs.{name}" for name in texts.get("inputs", {})} | {f"outputs.{slot}" for slot in texts["outputs"]}
    return problems + [f"{place} is left over" for place in known - slots.keys()]


@check("each fault of a node's translation is found")
def translation_faults() -> None:
    schema = schemas()["DraftAttentionDemoPrompt"]
    good = {
        "display_name": "a",
        "description": "b",
        "inputs": {"prompt": {"name": "c", "tooltip": "d, none"}},
        "outputs": {"0": {"name": "e", "tooltip": "f"}},
    }
    assert translation_problems(schema, good) == []
    assert translation_problems(schema, {**good, "inputs": {}}) == [
        "inputs.prompt.name is missing",
        "inputs.prompt.tooltip is missing",
    ]
    left = {**good["inputs"], "seed": {"name": "c", "tooltip": "d"}}
    assert translation_problems(schema, {**good, "inputs": left}) == ["inputs.seed is left over"]
    scheduler = schemas()["SparsityScheduler"]
    without = translation_problems(scheduler, {"outputs": {}})
    assert "inputs.steps.tooltip is missing" in without and "display_name is missing" in without
    told = {**{item.id: {"name": "a", "tooltip": "b"} for item in scheduler.inputs}}
    lacking = translation_problems(scheduler, {"inputs": told, "outputs": {}})
    assert {'inputs.layer_bands.tooltip lacks "10-20:1.5"', "inputs.curve.tooltip lacks balanced"} <= set(lacking)


@check("the scheduler marks the steps of the connected sampler")
def scheduler() -> None:
    model, _, _ = wan()
    defaults = {"curve": "balanced", "steps": 20, "density": 0.0}
    spec, picture = run("scheduler", "SparsityScheduler", **defaults)
    assert spec.resolve(20).curve(0.9) == 0.2
    assert picture.dim() == 4 and picture.shape[-1] == 3 and picture.min() >= 0 and picture.max() <= 1

    place = host.pack("nodes.scheduler").sampler_steps
    progress, whole, _ = place(4, model, None)
    assert whole == 4 and len(progress) == 4 and progress[0] < 1e-6
    assert all(abs(found - step / 4) < 0.01 for step, found in enumerate(progress)), progress
    # The second half of the sampler's sigmas lands in the second half of the whole trajectory.
    import comfy.samplers

    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 20)
    progress, whole, _ = place(4, model, sigmas[10:])
    assert whole == 20 and len(progress) == 10 and abs(progress[0] - 0.5) < 0.02, (whole, progress)
    _, with_model = run("scheduler", "SparsityScheduler", **defaults, model=model, sigmas=sigmas, dense_layers="0")
    assert not torch.equal(picture, with_model)
    try:
        place(4, None, sigmas)
    except ValueError as error:
        assert "connect the model" in str(error)
    else:
        raise AssertionError("sigmas without a model were placed")


@check("one schedule lands at the same noise in both halves of a split run")
def split_run() -> None:
    import comfy.samplers

    model, latent, conditioning = wan()
    curve = host.pack("nodes.inputs.curves").SparsityCurve(
        "custom points", points=((0, 1), (0.45, 1), (0.45, 0.3), (1, 0.3))
    )
    patched, handle = host.apply(model, schedule=curve)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 8)
    reasons = []
    for part in (sigmas[:5], sigmas[4:]):
        host.sample(patched, latent, conditioning, steps=4, sigmas=part)
        reasons.append((handle.report.calls_sparse, handle.report.calls_dense().get("schedule", 0)))
    assert reasons[0] == (0, 8) and reasons[1] == (8, 0), reasons


@check("two experts under KSamplerAdvanced: one schedule from the node lands at the same noise in each half")
def two_experts() -> None:
    import comfy.utils

    import nodes

    comfy.utils.PROGRESS_BAR_ENABLED = False
    case = CASES[0]
    noisy, clean = host.build(case.config, case.unet), host.build(case.config, case.unet, seed=1)
    latent = {"samples": torch.zeros(1, 16, 3, 12, 16)}
    for curve, steps, switch in (("balanced", 20, 10), ("balanced", 20, 3), ("quality", 4, 2), ("fast", 8, 1)):
        schedule, _ = run("scheduler", "SparsityScheduler", curve=curve, steps=steps, density=0.0, dense_layers="0")
        apply = {"preset": "auto", "sparsity": 0.0, "tail": "linear1", "min_tokens": 0, "schedule": schedule}
        seen: list[tuple[float, float]] = []
        passed = latent
        for expert, first, last in ((noisy, 0, switch), (clean, switch, steps)):
            patched, handle = run("apply", "ApplyDraftAttention", model=expert, **apply)
            add, keep = ("enable" if first == 0 else "disable"), ("enable" if last < steps else "disable")
            sampler = nodes.KSamplerAdvanced()
            (passed,) = sampler.sample(
                patched,
                add,
                7,
                steps,
                1.0,
                "euler",
                "simple",
                case.conditioning(),
                case.conditioning(),
                passed,
                first,
                last,
                keep,
            )
            asked = {call.position.progress for call in handle.report.calls if call.position}
            assert len(asked) == last - first
            for call in handle.report.calls:
                if call.position and call.position.layer == 1:
                    density = 1.0 if call.density is None else float(call.density)
                    seen.append((call.position.progress, density))
                elif call.position:
                    assert call.density is None, "layer 0 is in the schedule's list of dense layers"
        assert [round(progress * steps, 1) for progress, _ in seen] == list(range(steps)), seen
        expected = schedule.resolve(steps)
        for progress, density in seen:
            wanted = expected.density(progress, 1, 2)
            # Blocks are whole: the density of a call of 3 key blocks or so is only near what was asked for.
            assert (density == 1.0) == (wanted is None), (curve, steps, progress, density, wanted)
            assert wanted is None or density < 1.0
        dense = sum(density == 1.0 for _, density in seen)
        assert dense == {20: 2, 4: 0, 8: 0}[steps], (curve, steps, dense)


@check("the report node tells and draws the run, and writes it as JSON")
def report() -> None:
    import folder_paths

    _, handle, out = sampled()
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_output_directory(folder)
        text, picture = run(
            "report_node", "DraftAttentionReport", report=handle, after={"samples": out}, save_json=True
        )
        (path,) = Path(folder).rglob("*.json")
        values = json.loads(path.read_text(encoding="utf-8"))
    assert values.pop("predicted_saving") == 1.0 - handle.report.work_density()
    assert values == json.loads(json.dumps(handle.report.to_dict()))
    assert values["calls_sparse"] == 6 and len(values["density_map"]) == 3
    assert text.startswith("DraftAttention: 6 of 6 self-attention calls sparse") and str(path) in text
    assert picture.shape[1] > 200 and picture.shape[2] > 300


@check("a capture keeps the wanted call and leaves the run as it was")
def preview() -> None:
    patched, handle, without = sampled()
    capturing, captured = host.pack("nodes.preview").capture_calls(patched, handle, step=1, layer=-1)
    _, latent, conditioning = wan()
    out = host.sample(capturing, latent, conditioning, steps=3)
    assert torch.equal(out, without)
    assert not handle.events.wanted(host.pack("draftattn_core.run.events").CallDone)
    taken = captured.capture.taken
    assert (taken.position.step, taken.position.layer) == (1, 1)
    assert taken.layout.grid.as_tuple() == (3, 6, 8)

    place = {"time": 0.5, "y": 0.5, "x": 0.5}
    sheet, heat, kept = run(
        "preview", "DraftAttentionPreview", capture=captured, samples={"samples": out}, head=1, **place
    )
    assert sheet.shape[0] == 1 and heat.shape == kept.shape and heat.shape[0] == 3
    assert not torch.equal(heat, kept)
    images = torch.rand(9, 96, 128, 3)
    over_images = run(
        "preview",
        "DraftAttentionPreview",
        capture=captured,
        samples={"samples": out},
        head=1,
        images=images,
        **place,
    )
    assert not torch.equal(over_images[2], kept)
    missing = run("preview", "DraftAttentionPreview", capture=captured, samples={"samples": out}, head=9, **place)
    assert missing[0].shape[1] < sheet.shape[1]


@check("a run without the capture's model is not captured")
def capture_stays_with_its_model() -> None:
    patched, handle, _ = sampled()
    _, captured = host.pack("nodes.preview").capture_calls(patched, handle, step=-1, layer=0)
    _, latent, conditioning = wan()
    host.sample(patched, latent, conditioning, steps=3)
    assert captured.capture.taken is None


@check("compare measures latents and images and refuses a mix")
def compare() -> None:
    model, latent, conditioning = wan()
    dense = host.sample(model, latent, conditioning, steps=3)
    _, _, sparse = sampled()
    inputs = {"reference": {"samples": dense}, "clip": {"samples": sparse}}
    text, frames, psnr, ssim, flicker = run("compare", "DraftAttentionCompare", **inputs, model=model)
    assert frames.shape[0] == 3 and f"PSNR {psnr:.2f} dB" in text
    assert 0 < psnr < 200 and 0 < ssim <= 1 and flicker >= 0
    same = run("compare", "DraftAttentionCompare", reference={"samples": dense}, clip={"samples": dense})
    assert "Identical" in same[0]
    images = torch.rand(5, 24, 32, 3)
    assert run("compare", "DraftAttentionCompare", reference=images, clip=images * 0.9)[1].shape[0] == 5


@check("the doctor finds a backend that is right")
def doctor() -> None:
    text, works = run("doctor_node", "DraftAttentionDoctor")
    assert works and "right: relative L2 error" in text and "`auto` takes" in text
