"""Texts for the browser: English as the core says it, and the keys and values that other languages are made from."""

from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest


@pytest.fixture
def words(part):
    return part("nodes.words")


def said(words, told, language="en") -> str:
    """What the browser makes of a text."""
    texts = words.texts(language)
    if isinstance(told, dict) and "parts" in told:
        return texts[told["by"]].join(said(words, one, language) for one in told["parts"])
    if isinstance(told, dict) and told["key"] not in texts:
        return told["text"]
    if isinstance(told, dict):
        values = {name: said(words, value, language) for name, value in told["values"].items()}
        return re.sub(r"\{(\w+)\}", lambda place: values[place[1]], texts[told["key"]])
    return str(told)


# Words that no English sentence of more than a few words does without.
ENGLISH = re.compile(r"\b(?:the|is|are|was|were|with|without|not|no|its|this|for|and|of|or|on|at|to|does|from)\b")
# Commands, addresses and names stay as they are: "pip install", "docs for X" in a link.
NAMES = re.compile(r"https?://\S+|`[^`]*`|\"[^\"]*\"|-m pip install|'[a-z ]+'")


def english_in(text: str) -> list[str]:
    return [line for line in text.splitlines() if ENGLISH.search(NAMES.sub("", line))]


def test_a_text_is_english_and_remembers_what_it_was_made_from(words) -> None:
    made = words.Words("run_line", story=words.Joined([words.Words("run_nothing_sparse"), "x"], words.LIST))
    assert made == "DraftAttention: nothing was sparse, x" and isinstance(made, str)
    told = words.plain(made)
    assert told == {
        "key": "run_line",
        "values": {"story": {"parts": [{"key": "run_nothing_sparse", "values": {}}, "x"], "by": "join_list"}},
    }
    assert said(words, json.loads(json.dumps(told))) == made


def test_an_unknown_text_or_a_missing_value_is_an_error(words) -> None:
    with pytest.raises(KeyError):
        words.Words("no such text")
    with pytest.raises(KeyError):
        words.Words("run_line")


def test_braces_in_a_value_stay_as_they_are(words) -> None:
    assert words.Words("report_item", text="{count} {text}") == "  {count} {text}"


def test_a_copy_is_plain_text(words) -> None:
    made = words.Joined([words.Words("bypass_model"), "b"], words.LINES)
    kept = copy.deepcopy({"text": (made, words.Words("bypass_model"))})
    assert kept == {"text": ("the model\nb", "the model")} and all(type(one) is str for one in kept["text"])
    shown = words.told(made)
    assert type(shown["text"][0]) is str and shown["draftattention_words"][0]["by"] == "join_lines"


def reports(part):
    """Reports of every shape that the summary has words for."""
    core, log = part("draftattn_core.run.report"), part("draftattn_core.run.step_cache.log")
    settings, outcome = part("draftattn_core.run.step_cache.settings"), part("draftattn_core.run.evaluation").Outcome

    def made(calls=(), cancelled=None, outcomes=None, decided=(), rule="off", steps=None, seconds=()):
        report = core.RunReport()
        for step, (density, reason, took) in enumerate(calls):
            why = None if reason is None else core.DenseReason(reason)
            position = core.Position(step, 0.0, 0, 1) if reason != "not self-attention" else None
            report.add(core.Call(position, density, why, 100.0, lambda took=took: took))
        for step, took in enumerate(seconds):
            report.add_evaluation(step, lambda took=took: took)
        report.cancelled, report.steps = cancelled, steps
        report.skip = settings.StepCacheSettings(rule=rule)
        report.outcomes.update(outcomes or {})
        report.decisions = [
            log.Decision(index, 0, 0, 0.5, 0.5, kind, log.Reason.FIRST, None, error, 1, 0)
            for index, (kind, error) in enumerate(decided)
        ]
        report.finish()
        return report

    sparse, dense = (0.25, None, 0.5), (None, "schedule", 1.0)
    computed, forecast = (outcome.COMPUTED, 0.0123), (outcome.FORECAST, None)
    yield made([sparse, sparse, dense], seconds=(1.0, 1.0, 2.0))
    yield made([sparse, dense], "cancelled after step 2 of 20")
    yield made([sparse], "cancelled in step 1")
    yield made([dense, (None, "mask", 1.0), (None, "not self-attention", 1.0)])
    yield made([(0.25, None, 2.0), dense])
    yield made([(0.25, None, 0.0)])
    yield made(outcomes={"computed": 4})
    yield made(
        outcomes={"computed": 2, "forecast": 2},
        decided=[computed, forecast, computed, forecast],
        rule="forecast",
        steps=4,
    )
    yield made([sparse], outcomes={"computed": 3}, decided=[computed] * 3, rule="easycache", steps=8)
    yield made(
        [sparse, dense], outcomes={"computed": 2, "reused": 1}, decided=[computed, computed, forecast], rule="easycache"
    )


def test_the_story_of_a_run_is_the_core_s_word_for_word(part, words) -> None:
    told = part("nodes.host.run_words").run_words
    lines = [(report.summary(), told(report)) for report in reports(part)]
    assert len({line for line, _ in lines}) > 8, "the reports differ"
    for line, made in lines:
        assert made == line and said(words, words.plain(made)) == line


def test_the_report_says_in_english_what_its_keys_say(part, words) -> None:
    text = part("nodes.display.report_text").report_text
    for report in reports(part):
        report.tails[0] = ("linear1", "mean")
        report.tail_gains[0] = (0.0, math.log(2.0))
        report.tail_errors[0] = {"mean": 0.3, "linear1": 0.1}
        report.note("a note with {braces}")
        made = text(report)
        assert said(words, words.plain(made)) == made


def machines(part):
    """Machines that get every advice there is."""
    module = part("draftattn_core.doctor.machine")
    gpu = module.Accelerator("cuda:0", "NVIDIA GeForce RTX 4090", (8, 9), 24.0)
    old = replace(gpu, name="NVIDIA GeForce RTX 2080 Ti", capability=(7, 5))
    linux = module.Machine(
        system="Linux",
        system_detail="6.1 x86_64",
        python="3.12.4",
        python_path="/venv/bin/python",
        torch="2.10.0+cu128",
        cuda="12.8",
        torch_wants_triton="3.6.0",
        triton="3.6.0",
        triton_package="triton",
        compiler="/usr/bin/gcc",
        accelerators=(gpu,),
        kitchen="0.2.40",
    )
    windows = replace(linux, system="Windows", torch_wants_triton=None, triton_package=None, kitchen=None)
    yield from (linux, windows)
    yield replace(linux, accelerators=(), cuda=None)
    yield replace(linux, accelerators=())
    yield replace(linux, accelerators=(old,), triton=None)
    yield replace(linux, accelerators=(module.Accelerator("mps", "Apple arm64"),))
    yield replace(linux, triton=None)
    yield replace(linux, triton="3.2.0")
    yield replace(linux, compiler=None, python_headers=False)
    yield replace(windows, python_headers=False)
    yield replace(windows, triton_error="ImportError: DLL")
    yield replace(windows, torch="3.0.0")
    yield replace(windows, torch="3.0.0", triton=None)
    yield replace(linux, cuda=None, hip="6.4", triton=None, accelerators=(module.Accelerator("cuda:0", "RX 7900"),))


def checks(part):
    """Every backend's refusal of calls that it cannot serve, and findings of every kind."""
    import torch

    diagnose, phrase = part("draftattn_core.doctor.diagnose"), part("draftattn_core.phrase")
    kinds = part("draftattn_core.backends.call_kind")
    devices = [torch.device(name) for name in ("cpu", "mps", "xpu")]
    asked = [
        kinds.CallKind(device, dtype, size, *blocks)
        for device in devices
        for dtype in (torch.float32, torch.int8)
        for size, blocks in ((128, (128, 64)), (512, (96, 96)), (64, (64, 64)))
    ]
    for backend in part("draftattn_core.backends.registry").backends():
        for refusal in {backend.refuses(kind) for kind in asked} - {None}:
            yield diagnose.BackendCheck(backend.name, "cpu", "float32", None, 1e-4, refusal, 0.1)
    lost = phrase.Phrase("lost_gains", "tail gains")
    yield diagnose.BackendCheck("torch", "cpu", "float32", 1e-6, 1e-4, None, 0.1, lost)
    yield diagnose.BackendCheck("flex", "mps", "float32", 1.0, 1e-4, None, 0.1)


def test_the_doctor_says_the_same_in_english_by_its_keys(part, words) -> None:
    diagnose = part("draftattn_core.doctor.diagnose")
    for machine in machines(part):
        found = diagnose.Diagnosis(machine, tuple(checks(part)), tuple(diagnose.advice(machine)))
        assert said(words, words.plain(found.text())) == found.text()
        assert "torch on cpu, without tail gains" in found.text()


@pytest.mark.parametrize("language", ["zh", "ja", "ko"])
def test_no_english_is_left_of_the_doctor_s_findings(part, words, language: str) -> None:
    diagnose = part("draftattn_core.doctor.diagnose")
    advised = set()
    for machine in machines(part):
        todo = tuple(diagnose.advice(machine))
        advised |= {item.key for item in todo}
        for some in (tuple(checks(part)), ()):
            text = diagnose.Diagnosis(machine, some, todo).text()
            assert english_in(said(words, words.plain(text), language)) == []
    assert len(advised) >= 12


def test_english_that_is_left_is_found() -> None:
    assert english_in("稀疏\nits kernels take it: `not this`") == ["its kernels take it: `not this`"]
    assert english_in('请安装："/a/python" -m pip install "x"，见 https://a.b/for/the') == []


def test_how_far_a_cancelled_run_came_has_a_key(part, words) -> None:
    steps = part("draftattn_core.run.steps").Steps(total=20)
    assert steps.cancelled() == "cancelled in step 1 of 20"
    for step in range(4):
        steps.begin(step, 0.0)
    steps.broke()
    told = words.plain(steps.cancelled())
    assert told == {"key": "cancelled_after_of", "values": {"step": 3, "steps": 20}, "text": str(steps.cancelled())}
    assert said(words, told, "zh") == "在第 3 步之后取消（共 20 步）"


def test_the_problems_of_widgets_have_keys(part, words) -> None:
    problems = part("nodes.inputs.checks").PROBLEMS
    wrong = {
        "ApplyDraftAttention": {"tile": "4x4", "blocks": "1", "dense_layers": "x"},
        "SparsityScheduler": {"curve": "custom points", "points": "a", "layer_bands": "b", "dense_layers": "5-2"},
        "DraftAttentionReport": {"filename_prefix": "../x"},
        "DraftAttentionCalibrate": {"name": "a/b", "expert": "c/d"},
    }
    for node, values in wrong.items():
        found = problems[node](**values)
        assert set(found) == set(values) - {"curve"}, node
        for problem in found.values():
            assert isinstance(problem, words.Words) and said(words, words.plain(problem)) == problem


def test_the_live_text_goes_out_in_english_and_then_in_words(part, words) -> None:
    sent = []
    queue = SimpleNamespace(get_current_queue_volatile=lambda: ([], []))
    server = SimpleNamespace(
        prompt_queue=queue,
        send_progress_text=lambda text, node: sent.append((type(text), text, node)),
        send_sync=lambda event, told: sent.append((event, told)),
    )
    module = part("nodes.browser.live_text")
    tell = module.live_text(server, "7")
    tell(words.Words("live_step", step=2))
    told = {"node": "7", "workflow": "", "words": {"key": "live_step", "values": {"step": 2}}}
    assert sent == [(str, "step 2", "7"), (module.EVENT, told)]
    tell("x" * (module.MAX_TEXT + 1))
    assert len(sent) == 3, "a text without end is the host's alone"
