"""`python run.py calibrate`: profiles made run by run, gone on with after a stop, of tiny models and pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

from draftattention.draftattn_core.method.policy import TAILS
from draftattention.draftattn_core.run.calibration_file import load_profile_with_masks
from draftattention.draftattn_core.run.fingerprint import Conditions
from draftattention.draftattn_core.run.profile import Profile, prompt_key
from draftattention.draftattn_core.run.profile_file import load_profile, save_profile
from draftattention.draftattn_core.run.schedule import constant
from draftattention.draftattn_core.run.settings import Settings
from draftattention.nodes.inputs.presets import Choices
from tools.calibrate import __main__ as command
from tools.calibrate.jobs import Job, Progress, Recorded, jobs, read_prompts
from tools.calibrate.pipelines import Pipeline, VideoSize
from tools.calibrate.source import sees_all_buckets, steps_needed

TINY = ("tiny", "--grid", "1", "4", "8", "--steps", "2", "--tail", "mean")
RECORD = Settings(schedule=constant(1.0), record=True)


def calibrate(out: Path, *words: str) -> int:
    return command.main([*TINY, "--out", str(out), *words])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile of the tiny model's three prompts."""
    path = tmp_path_factory.mktemp("profiles") / "tiny.safetensors"
    assert calibrate(path) == 0
    return path


def test_the_tiny_models_profile_says_what_it_was_made_from(made: Path) -> None:
    profile = load_profile(made)
    assert (profile.fingerprint.family, profile.fingerprint.layers, profile.fingerprint.heads) == ("wan", 5, 4)
    assert (profile.runs, len(profile.prompts), dict(profile.grids)) == (3, 3, {"1x4x8": 3})
    assert profile.conditions.tails == ("mean",) and bool(profile.figures("main").measured[0].all())
    assert list(made.parent.iterdir()) and "shapes" not in (made.parent / "tiny.runs.jsonl").read_text()


def test_the_same_command_again_measures_nothing(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = made.read_bytes()
    assert calibrate(made) == 0
    assert made.read_bytes() == before and "3 of 3 runs are in tiny.safetensors already" in capsys.readouterr().out


def test_a_stopped_calibration_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, real, seen = tmp_path / "t.safetensors", command.TinyModel.record, []

    def stops(self: Any, job: Job, *rest: Any) -> Recorded:
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(job)
        return real(self, job, *rest)

    monkeypatch.setattr(command.TinyModel, "record", stops)
    assert calibrate(out) == 130 and load_profile(out).runs == 1
    assert "the same command goes on from here" in capsys.readouterr().err
    monkeypatch.setattr(
        command.TinyModel, "record", lambda self, job, *rest: (seen.append(job), real(self, job, *rest))[1]
    )
    assert calibrate(out) == 0 and load_profile(out).runs == 3
    assert [job.prompt for job in seen] == ["shapes", "pan", "both"]


def test_a_run_whose_adding_was_interrupted_is_measured_again_and_counts_once(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    progress, job, profile = Progress(path, {"steps": 2}), Job("a fox", 0), load_profile(made)
    progress.journal.write_text('{"run": "0123", "makes": 1, "masks": 0}\n{"run": "cut sh')
    assert not progress.done(job)
    key = progress._key(job)
    progress.journal.write_text(f'{{"run": "{key}", "makes": 1, "masks": 0}}\n')
    assert not progress.done(job)  # the line was written, the profile was not
    progress.add(job, Recorded(profile))
    assert Progress(path, {"steps": 2}).done(job)
    assert not Progress(path, {"steps": 3}).done(job) and not Progress(path, {"steps": 2}).done(Job("a fox", 1))
    path.unlink()
    assert not Progress(path, {"steps": 2}).done(job)


def test_more_prompts_grow_the_same_profile(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "grows.safetensors"
    save_profile(load_profile(made), path)
    assert calibrate(path, "--prompt", "pan", "--seed", "5") == 0
    assert (load_profile(path).runs, len(load_profile(path).prompts)) == (4, 3)


def test_masks_are_voted_for_by_whole_runs_and_kept_beside_the_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.safetensors"
    assert calibrate(out, "--masks", "--prompt", "pan", "--prompt", "both") == 0
    masks = load_profile_with_masks(out).calibration
    assert masks is not None and (masks.runs, len(masks.prompts)) == (2, 2)
    assert len(masks.experts["main"].progress) == 2 and "2 runs in" in capsys.readouterr().out
    assert calibrate(out, "--masks", "--prompt", "pan", "--prompt", "both") == 0
    again = load_profile_with_masks(out).calibration
    assert again is not None and again.runs == 2


def test_votes_of_a_run_whose_figures_were_not_added_do_not_count_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.safetensors"
    with monkeypatch.context() as broken:
        broken.setattr("tools.calibrate.jobs.add_to_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert calibrate(out, "--masks", "--prompt", "pan") == 130
    assert calibrate(out, "--masks", "--prompt", "pan") == 0
    found = load_profile_with_masks(out)
    assert found.runs == 1 and found.calibration is not None and found.calibration.runs == 1


def test_prompts_take_turns_so_that_a_short_calibration_has_seen_most() -> None:
    assert jobs(["a", "b"], 7, 2) == [Job("a", 7), Job("b", 7), Job("a", 8), Job("b", 8)]


def test_a_file_of_prompts_has_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("# animals\n a fox \n\na fox\nein Fuß\n", encoding="utf-8")
    assert read_prompts(path) == ["a fox", "ein Fuß"]
    path.write_text("# nothing\n")
    with pytest.raises(ValueError, match="holds no prompt"):
        read_prompts(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no UTF-8 text|is not UTF-8 text"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--prompt", "a fox"), "knows the prompts shapes, pan, both"),
        (("--prompts", "no-such-file"), "no-such-file"),
        (("--steps", "0"), "at least one step"),
        (("--out", "../-.safetensors"), "cannot name a profile"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    assert calibrate(tmp_path / "p.safetensors", *words) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_folder_without_a_pipeline_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "p.safetensors"
    assert command.main([str(tmp_path), "--out", str(out), "--prompt", "a fox"]) == 2
    assert "model_index.json" in capsys.readouterr().err


def test_a_file_that_is_no_profile_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "p.safetensors"
    out.write_bytes(b"something else")
    assert calibrate(out) == 2
    assert out.read_bytes() == b"something else" and "p.safetensors" in capsys.readouterr().err


def test_a_run_ends_once_every_part_of_the_noise_range_was_seen() -> None:
    assert [steps_needed(steps) for steps in (1, 2, 4, 8, 20, 50)] == [1, 2, 4, 6, 12, 29]
    assert [sees_all_buckets(steps) for steps in (1, 2, 3, 4, 20)] == [False, False, True, True, True]


def wan(seed: int) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8, freq_dim=16,
        ffn_dim=32, num_layers=2,
    ).eval()  # fmt: skip


def pipeline(*, experts: bool) -> Any:
    """A real Wan pipeline at toy size; only what makes embeddings of a prompt stands in."""
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        transformer=wan(0),
        transformer_2=wan(1) if experts else None,
        boundary_ratio=0.7 if experts else None,
        vae=AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )

    def embeddings(prompt: str, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(len(prompt))
        return torch.randn(1, 3, 8, generator=generator), torch.zeros(1, 3, 8)

    pipe.encode_prompt = embeddings
    return pipe


def record(pipe: Any, steps: int = 6, *, whole: bool = False) -> tuple[Profile | None, int]:
    """What a run of the pipeline leaves, and how many steps it took."""
    taken = [0]

    def step() -> None:
        taken[0] += 1

    source = Pipeline(pipe, "toy", steps=steps, size=VideoSize(64, 64, 5))
    return source.record(Job("a fox", 3), RECORD, whole, step).profile, taken[0]


def test_a_pipeline_is_measured_and_its_run_ends_early() -> None:
    profile, taken = record(pipeline(experts=False))
    assert profile is not None and taken == steps_needed(6) == 5
    assert (profile.runs, profile.prompts, dict(profile.steps)) == (1, (prompt_key("a fox"),), {"6": 1})
    assert dict(profile.grids) == {"2x4x4": 1} and bool(profile.figures("main").measured.all())
    assert record(pipeline(experts=False), whole=True)[1] == 6


def test_both_experts_of_a_pipeline_get_figures_of_their_own_in_one_run() -> None:
    profile, _ = record(pipeline(experts=True))
    assert profile is not None and list(profile.experts) == ["high", "low"] and profile.runs == 1
    high, low = profile.figures("high"), profile.figures("low")
    assert high.weights != low.weights
    assert bool(high.measured[0].all()) and not bool(high.measured[2].any())
    assert bool(low.measured[2].all()) and not bool(low.measured[0].any())


def test_the_profile_serves_that_pipeline(tmp_path: Path) -> None:
    from draftattention.draftattn_core.hosts.diffusers.apply import apply_draft_attention

    pipe = pipeline(experts=False)
    profile, _ = record(pipe)
    assert profile is not None
    save_profile(profile, tmp_path / "toy.safetensors")
    settings = Settings(schedule=constant(0.5), profile=load_profile(tmp_path / "toy.safetensors"))
    with apply_draft_attention(pipe.transformer, settings, scheduler=pipe.scheduler) as handle:
        pipe(prompt="a hare", num_inference_steps=2, width=64, height=64, num_frames=5, output_type="latent")
        report = handle.report
    assert {row.source for row in report.budgets} == {"profile"} and report.notes == ["profile: made from 1 prompt"]


def conditions(settings: Settings) -> Conditions:
    """What a profile made or used under these settings depends on."""
    return Conditions.of(
        settings.policy, q_block=settings.q_block, k_block=settings.k_block, tile=settings.tile, order=settings.order,
        tails=TAILS if settings.auto_tail else ("linear1",), gains=settings.auto_gain,
    )  # fmt: skip


@pytest.mark.parametrize(("tail", "blocks"), [("auto", (128, 64)), ("linear1", (64, 64))])
def test_a_profile_is_made_under_the_conditions_of_the_node_with_the_same_choices(
    tail: str, blocks: tuple[int, int]
) -> None:
    arguments = command.parse(["tiny", "--out", "p", "--tail", tail, "--blocks", f"{blocks[0]}/{blocks[1]}"])
    ours, nodes = command.settings_of(arguments), Choices(preset="custom", tail=tail, blocks=blocks).settings(20, 0)
    assert conditions(ours) == conditions(nodes) and ours.record and ours.schedule.curve(0.9) == 1.0
