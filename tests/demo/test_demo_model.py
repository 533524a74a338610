"""The tiny trained model: its file, its data, its latents, and that it has learnt something."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")

from demo import attention, checkpoint, data, flow, latent, sample
from draftattention.nodes import demo_prompts as prompts

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def trained():
    return checkpoint.load()


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    return checkpoint.new_model(num_layers=1)


def test_names_map_both_ways(untrained):
    names = list(untrained.state_dict())
    wan = [checkpoint.diffusers_to_wan(name) for name in names]
    assert [checkpoint.wan_to_diffusers(name) for name in wan] == names
    assert len(set(wan)) == len(names)
    # In the original names norm3 is the affine norm before cross-attention; diffusers calls it norm2.
    assert checkpoint.wan_to_diffusers("blocks.3.norm3.weight") == "blocks.3.norm2.weight"
    for unknown in ("blocks.0.cross_attn.k_img.weight", "img_emb.proj.0.bias", "blocks.0.norm1.weight"):
        with pytest.raises(KeyError, match="no diffusers name"):
            checkpoint.wan_to_diffusers(unknown)


def test_save_and_load_round_trip(tmp_path, untrained):
    state = {key: value.half().float() for key, value in untrained.state_dict().items()}
    path = tmp_path / "model.safetensors"
    checkpoint.save(state, path, config={**checkpoint.TINY_CONFIG, "num_layers": 1}, notes={"steps": 7})
    loaded = checkpoint.load(path)
    assert loaded.config.num_layers == 1 and not loaded.training
    assert checkpoint.notes(path) == {"steps": 7}
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_missing_checkpoint_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m demo.train"):
        checkpoint.load(tmp_path / "none.safetensors")


def test_shipped_file_is_small_and_is_recognised_as_wan():
    assert checkpoint.CHECKPOINT.stat().st_size <= 12_000_000
    with safe_open(checkpoint.CHECKPOINT, framework="pt") as file:
        names, metadata = set(file.keys()), file.metadata()
        # What ComfyUI's detection reads from the tensors, and the two things it can only know from the metadata.
        assert file.get_slice("head.modulation").get_shape() == [1, 2, 256]
        assert file.get_slice("head.head.weight").get_shape() == [16 * 4, 256]
        assert file.get_slice("patch_embedding.weight").get_shape() == [256, 16, 1, 2, 2]
        assert file.get_slice("blocks.0.self_attn.q.weight").get_dtype() == "F16"
    layers = {name.split(".")[1] for name in names if name.startswith("blocks.")}
    assert 4 <= len(layers) <= 8
    assert json.loads(metadata["config"]) == {"transformer": {"num_heads": 4, "text_dim": 1024}}


@pytest.mark.parametrize(("sigma", "share"), [(0.3, 0.25), (0.6, 0.15), (0.9, 0.35)])
def test_trained_model_sees_the_video(trained, sigma, share):
    """Its velocity error is under a stated share of what a model that sees nothing would have."""
    error, blind = flow.visible_velocity_error(trained, sigma, samples=4)
    assert error < share * blind


def test_untrained_model_does_not(untrained):
    error, blind = flow.visible_velocity_error(untrained, 0.6, samples=2)
    assert error > 0.8 * blind


def test_the_prompt_is_obeyed(trained):
    """At full noise the prompt alone tells the ground: plum and brown are red, blue and green are not."""
    noise = sample.initial_noise((3, 8, 12), seed=5)
    reds = {}
    for name in ("shapes", "pan"):
        with torch.no_grad():
            velocity = flow.predict_velocity(trained, noise, torch.ones(1), prompts.prompt_embedding(name))
        red, green, blue = latent.latent_to_rgb_float(noise - velocity).mean((0, 2, 3, 4)).tolist()
        reds[name] = red - (green + blue) / 2
    assert reds["pan"] > reds["shapes"] + 0.2


def test_prompt_embeddings():
    assert prompts.prompt_embedding("").count_nonzero() == 0
    every = torch.cat([prompts.prompt_embedding(name) for name in prompts.PROMPTS])
    assert every.shape == (3, 4, 1024) and every.dtype == torch.float32
    assert every.std().item() == pytest.approx(1, abs=0.01)
    flat = every.flatten(0, 1)
    assert (flat @ flat.T / 1024 - torch.eye(12)).abs().max() < 0.02
    # The trained weights depend on these very numbers.
    first = math.sqrt(2) * math.sin(math.pi / 13 * 0.5)
    assert prompts.prompt_embedding("shapes")[0, 0, 0].item() == pytest.approx(first, rel=1e-6)
    with pytest.raises(ValueError, match="shapes, pan, both"):
        prompts.prompt_embedding("cat")


def test_data_is_a_function_of_the_seed():
    first, second, other = (data.video_batch(torch.Generator().manual_seed(seed), 3, 4, 12, 20) for seed in (3, 3, 4))
    assert torch.equal(first[0], second[0]) and first[1] == second[1]
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == (3, 3, 4, 12, 20)
    assert first[0].min() >= -1 and first[0].max() <= 1


def test_prompts_describe_the_motion():
    video, names = data.video_batch(torch.Generator().manual_seed(0), 60, 4, 16, 24)
    assert set(names) == set(prompts.PROMPTS)
    still = ((video[:, :, 1:] - video[:, :, :-1]).abs().amax(1) < 1e-4).float().mean((1, 2, 3))
    by_name = {name: still[[index for index, value in enumerate(names) if value == name]] for name in prompts.PROMPTS}
    assert by_name["shapes"].median() > 0.3
    assert by_name["pan"].median() < 0.2 and by_name["both"].median() < 0.2


def test_latent_shows_the_picture():
    video, _ = data.video_batch(torch.Generator().manual_seed(1), 2, 3, 8, 12)
    x0 = latent.rgb_to_latent(video)
    assert x0.shape == (2, 16, 3, 8, 12)
    assert torch.allclose(latent.latent_to_rgb_float(x0), video, atol=1e-5)
    frames = latent.latent_to_rgb(x0)
    assert frames.dtype == np.uint8 and frames.shape == (2, 3, 8, 12, 3)
    expected = ((video + 1) * 127.5).permute(0, 2, 3, 4, 1).numpy()
    assert np.abs(frames - expected).max() <= 0.51


def test_wan_process_out_is_undone():
    x0 = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    out = x0 * latent.WAN_STD.view(16, 1, 1, 1) + latent.WAN_MEAN.view(16, 1, 1, 1)
    assert torch.allclose(latent.wan_process_out_inverse(out), x0, atol=1e-5)
    # Batch-free latents, as some decoders hand over, broadcast the same way.
    assert torch.allclose(latent.wan_process_out_inverse(out[0]), x0[0], atol=1e-5)


def test_error_split_adds_up():
    error = torch.randn(2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    seen, unseen = flow.split_error(error)
    assert (3 * seen + 13 * unseen).item() == pytest.approx(16 * error.square().mean().item(), rel=1e-5)
    picture = torch.einsum("bkthw,ck->bcthw", torch.randn(1, 3, 2, 4, 4), latent.RGB_FACTORS)
    assert flow.split_error(picture)[1] < 1e-10


def test_sampler_is_deterministic_and_reports_progress(untrained):
    seen: list[tuple[int, int, float]] = []
    first = sample.sample(
        untrained, "pan", (2, 4, 4), steps=3, seed=1, callback=lambda i, n, s, x0: seen.append((i, n, round(s, 4)))
    )
    again = sample.sample(untrained, "pan", (2, 4, 4), steps=3, seed=1)
    other = sample.sample(untrained, "pan", (2, 4, 4), steps=3, seed=2)
    assert first.shape == (1, 16, 2, 8, 8)
    assert torch.equal(first, again) and not torch.equal(first, other)
    # shift 5: 5u / (1 + 4u) at u = 1, 2/3, 1/3
    assert seen == [(0, 3, 1.0), (1, 3, 0.9091), (2, 3, 0.7143)]
    with pytest.raises(ValueError, match="at least 1"):
        sample.sample(untrained, steps=0)


def test_captured_queries_and_keys_are_those_of_the_attention(untrained):
    """softmax(q k / 8) v of the captured pair, projected, is what the attention layer returned."""
    outputs: list[torch.Tensor] = []
    layer = untrained.blocks[0].attn1
    processor = layer.processor
    values: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(output)),
        layer.to_v.register_forward_hook(lambda module, inputs, output: values.append(output)),
    ]
    with torch.no_grad(), attention.captured_self_attention(untrained) as calls:
        flow.predict_velocity(untrained, torch.randn(1, 16, 2, 8, 8), torch.tensor([0.5]), torch.zeros(1, 4, 1024))
        (index, q, k), v = calls[0], values[0].unflatten(2, (4, 64)).transpose(1, 2)
        mixed = (q @ k.transpose(-1, -2) / 8).softmax(-1) @ v
        expected = layer.to_out[0](mixed.transpose(1, 2).flatten(2))
    for hook in hooks:
        hook.remove()
    assert index == 0 and len(calls) == 1 and q.shape == (1, 4, 32, 64)
    assert torch.allclose(outputs[0], expected, atol=1e-5)
    assert layer.processor is processor


def test_top_block_mass_of_known_attention():
    order = attention.tile_order((2, 4, 4), (2, 2, 2))
    assert order[:8].tolist() == [0, 1, 4, 5, 16, 17, 20, 21]
    with pytest.raises(ValueError, match="does not divide"):
        attention.tile_order((3, 4, 4), (2, 2, 2))
    # Each token attends to its own tile only; then the one kept block of four holds everything.
    own = torch.zeros(1, 1, 32, 4)
    own[0, 0, order] = 40 * torch.eye(4).repeat_interleave(8, 0)
    true, drafted = attention.top_block_mass(own, own, order, 8, share=0.25)
    assert true.item() == pytest.approx(1) and drafted.item() == pytest.approx(1)
    flat = torch.zeros(1, 1, 32, 4)
    assert attention.top_block_mass(flat, flat, order, 8, share=0.25)[0].item() == pytest.approx(0.25)


def test_comfyui_gives_the_same_velocity(comfyui, tmp_path, trained):
    """One file, two hosts: the original names, the RoPE split and the time steps mean the same to both."""
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "x": torch.randn(2, 16, 3, 12, 20, generator=generator),
        "timestep": torch.tensor([900.0, 250.0]),
        "text": torch.cat([prompts.prompt_embedding("pan"), prompts.prompt_embedding("")]),
    }
    save_file(inputs, tmp_path / "in.safetensors")
    script = Path(__file__).parents[1] / "comfyui" / "demo_velocity.py"
    files = (checkpoint.CHECKPOINT, tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    command = [str(value) for value in (comfyui.python, script, comfyui.path, *files)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    answer = load_file(files[-1])
    with torch.no_grad():
        expected = flow.predict_velocity(trained, inputs["x"], inputs["timestep"] / 1000, inputs["text"])
    assert answer["heads"].item() == 4
    difference = (answer["velocity"] - expected).abs().max().item()
    assert difference < 2e-4 * expected.abs().max().item()
