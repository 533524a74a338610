"""Every text has its key in every language that is shipped, with the same places for values; no key is left over."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from draftattention.draftattn_core.method.policy import METHODS, TAILS
from draftattention.draftattn_core.phrase import SEPARATORS
from draftattention.draftattn_core.run.evaluation import Outcome, Uncorrected
from draftattention.draftattn_core.run.report import DenseReason
from draftattention.draftattn_core.run.step_cache.log import Reason
from tests.locales.phrases import core_texts, files_that_tell, keyless, phrases, said_by_core
from tools.comfyui.path import PACK_ROOT

LOCALES = PACK_ROOT / "locales"
SECTION = "draftattention"
LANGUAGES = sorted(path.name for path in LOCALES.iterdir() if path.name != "en")
# Texts whose keys are put together from a name of the core's.
FAMILIES = {
    "reason": [str(one) for one in DenseReason],
    "remedy": [str(one) for one in DenseReason],
    "computed": [str(one) for one in Reason],
    "uncorrected": [str(one) for one in Uncorrected],
    "outcome": [one.value for one in Outcome],
    "source": ["profile", "this run"],
    "bucket": ["early", "middle", "late"],
    "maps": ["frame", "step", "layer", "head"],
    "run": [
        *(f"{start}{unit}" for start in ("all_", "") for unit in ("steps", "evaluations")),
        *(f"{unit}_{pace}" for unit in ("step", "call") for pace in ("faster", "slower")),
    ],
    "profile": ["measured", "measured_gains"],
}
# Choices that are proper names or numbers are the same in every language.
NAMES = {*TAILS, *METHODS} - {"none", "mean", "head", "row", "draft", "tail_error"}
# What a front end's message compiler would read as its own.
SPECIAL = re.compile(r"[{}@|]")


def read(language: str, file: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((LOCALES / language / f"{file}.json").read_text(encoding="utf-8"))
    return found


def texts(language: str) -> dict[str, str]:
    found = read(language, "main")
    assert set(found) == {SECTION}, "the host merges all packs' files: nothing of ours stands outside our section"
    section: dict[str, str] = found[SECTION]
    return section


def english() -> dict[str, str]:
    """English by key: of nodes and scripts from their file, of the core from its source."""
    return {**texts("en"), **core_texts()}


def places(text: str) -> list[str]:
    return sorted(re.findall(r"\{(\w+)\}", text))


def differences(english: dict[str, str], other: dict[str, str]) -> list[str]:
    """What keeps the texts of a language from standing in for the English ones."""
    found = [f"{key} is missing" for key in english if key not in other]
    found += [f"{key} is left over" for key in other if key not in english]
    for key in english.keys() & other.keys():
        if places(english[key]) != places(other[key]):
            found.append(f"{key} has other places for values")
        if english[key].strip() and not other[key].strip():
            found.append(f"{key} is empty")
        if english[key].count("\n") != other[key].count("\n"):
            found.append(f"{key} has other lines")
    return sorted(found)


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(tree, str):
        yield path, tree
    else:
        for key, below in tree.items():
            yield from leaves(below, (*path, key))


def sources(folder: str, pattern: str) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((PACK_ROOT / folder).rglob(pattern)))


def test_the_shipped_languages_are_those_that_were_written() -> None:
    assert LANGUAGES == ["ja", "ko", "zh"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_has_every_text_with_its_places_and_none_left_over(language: str) -> None:
    assert differences(english(), texts(language)) == []


def test_each_fault_of_a_language_is_found() -> None:
    some = {"a": "{count} steps", "b": "dense", "c": "two\nlines"}
    assert differences(some, {"a": "{count} Schritte", "b": "dicht", "c": "zwei\nZeilen"}) == []
    assert differences(some, {"b": "", "c": "eine", "d": "", "a": "{number} Schritte"}) == [
        "a has other places for values",
        "b is empty",
        "c has other lines",
        "d is left over",
    ]
    assert differences(some, {}) == ["a is missing", "b is missing", "c is missing"]


def used_keys() -> set[str]:
    """Keys that the code names, whole or by their family."""
    code = sources("nodes", "*.py") + sources("web", "*.js")
    named = set(re.findall(r"""["'`]([a-z]+_[a-z_]+|[a-z]+)["'`]""", code))
    return named | set(SEPARATORS) | {f"{family}_{name}" for family, names in FAMILIES.items() for name in names}


def test_every_english_text_is_used() -> None:
    used = used_keys()
    unused = [key for key in texts("en") if key not in used and not key.startswith("option_")]
    assert unused == []


def test_every_text_that_the_code_asks_for_is_there() -> None:
    known = texts("en")
    asked = set(re.findall(r'Words\(\s*"(\w+)"', sources("nodes", "*.py")))
    asked |= set(re.findall(r'\bsay\(\s*"(\w+)"', sources("web", "*.js")))
    asked |= {f"{family}_{name}" for family, names in FAMILIES.items() for name in names}
    assert len(asked) > 150
    assert sorted(asked - known.keys()) == []


def test_every_phrase_of_the_core_is_written_out_where_it_is_said() -> None:
    found = said_by_core()
    assert len(found) > 150
    assert [fault for one in found if (fault := one.fault())] == []


def test_a_key_of_the_core_has_one_english_and_is_none_of_the_nodes() -> None:
    pairs = {(one.key, one.english) for one in said_by_core()}
    assert len(pairs) == len({key for key, _ in pairs}), "the same key says two things"
    assert core_texts().keys() & texts("en").keys() == set()


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ('Phrase("a", "step {step}", step=1)', None),
        ('Phrase("a", "step {step}")', "other values than places"),
        ('Phrase("a", "step", step=1)', "other values than places"),
        ('Phrase("a", f"step {step}")', "write key, English and values out"),
        ('Phrase(key, "step")', "write key, English and values out"),
        ('Phrase("a", "step {step}", **values)', "write key, English and values out"),
        ('Phrase("a")', "write key, English and values out"),
    ],
)
def test_each_fault_of_a_phrase_is_found(source: str, fault: str | None) -> None:
    (one,) = phrases(source, "a file")
    found = one.fault()
    assert found is None if fault is None else fault in (found or "")


def test_nothing_is_told_in_a_run_without_a_key() -> None:
    # What comes by a variable or a function is for the type check: `note` and its like take a `Text`.
    assert [fault for source, where in files_that_tell() for fault in keyless(source, where)] == []


@pytest.mark.parametrize(
    "source", ['run.note("x")', 'self._tell(f"{x} y")', 'report.note("x" + y)', 'Foreign("x")', 'Text("x")']
)
def test_a_text_without_a_key_is_found(source: str) -> None:
    assert len(list(keyless(source, "a file"))) == 1


def test_what_stands_between_parts_is_the_same_in_the_core_and_in_the_browser() -> None:
    assert {key: text for key, text in texts("en").items() if key.startswith("join_")} == SEPARATORS


@pytest.mark.parametrize("language", LANGUAGES)
def test_node_texts_are_those_of_the_other_languages_and_nothing_the_front_end_compiles(language: str) -> None:
    found = dict(leaves(read(language, "nodeDefs")))
    assert set(found) == {path for path, _ in leaves(read("zh", "nodeDefs"))}
    assert [path for path, text in found.items() if not text.strip()] == []
    assert [path for path, text in found.items() if SPECIAL.search(text)] == []


def labels(language: str) -> dict[str, set[str]]:
    """What inputs are called on their widgets, by name."""
    found: dict[str, set[str]] = {}
    for node in read(language, "nodeDefs").values():
        for name, said in node.get("inputs", {}).items():
            found.setdefault(name, set()).add(said["name"])
    return found


def called_by_name(text: str, names: Iterable[str]) -> list[str]:
    """Inputs that a text calls by the names that only workflows and the English interface have."""
    # The choice "custom points" is shown beside its word; what checks may quote are values.
    said = re.sub(r"custom points|\{\w+\}|\"[^\"]*\"", "", text)
    return re.findall(rf"(?<![A-Za-z0-9_.])({'|'.join(names)})(?![A-Za-z0-9_])", said)


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_call_an_input_as_its_widget_is_labelled(language: str) -> None:
    names = [name for name, said in labels(language).items() if said != {name}]
    assert len(names) > 30
    shown = {path: text for path, text in leaves(read(language, "nodeDefs")) if path[-1] != "name"}
    # Arguments of the Python API are called by their names, and what an option means may be an input's word.
    told = {key: text for key, text in texts(language).items() if key != "note_noise_alone" and "option_" not in key}
    assert {place: found for place, text in {**shown, **told}.items() if (found := called_by_name(text, names))} == {}


def test_an_input_that_is_called_by_its_name_is_found() -> None:
    assert called_by_name("min_tokens を下げてください", ["min_tokens", "points"]) == ["min_tokens"]
    assert called_by_name('custom points を選ぶ、{points}、"points"', ["min_tokens", "points"]) == []


def test_a_percent_sign_stands_at_its_number_in_every_language() -> None:
    shown = {"locales": "*.json", "web/docs": "*.md", "nodes": "*.py"}
    found = [re.findall(r".{0,20}[\d}]\s%(?!\w)", sources(folder, pattern)) for folder, pattern in shown.items()]
    assert found == [[], [], []]


@pytest.mark.parametrize("language", LANGUAGES)
def test_seconds_are_written_alike_on_the_map_and_in_the_report(language: str) -> None:
    said = texts(language)
    assert said["map_seconds"] in said["report_time"]


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_the_command_is_called_as_the_menu_entry(language: str) -> None:
    assert read(language, "commands") == {"DraftAttention_SpeedUp": {"label": texts(language)["speed_up"]}}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_setting_is_named_and_explained(language: str) -> None:
    source = (PACK_ROOT / "web" / "settings.js").read_text(encoding="utf-8")
    declared = re.findall(r'= "(DraftAttention\.[\w.]+)"', source)
    said = read(language, "settings")
    assert declared and set(said) == {name.replace(".", "_") for name in declared}
    assert all(set(text) == {"name", "tooltip"} and all(map(str.strip, text.values())) for text in said.values())


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_no_file_stands_beside_those_that_the_host_reads(language: str) -> None:
    # Nodes and settings are in English where they are declared.
    read_by_host = {"main.json", "commands.json"} | ({"nodeDefs.json", "settings.json"} if language != "en" else set())
    assert {path.name for path in (LOCALES / language).iterdir()} == read_by_host


def test_every_choice_that_is_no_name_is_said_in_words() -> None:
    from draftattention.nodes.inputs.curves import CURVES
    from draftattention.nodes.inputs.presets import (
        METHOD_NAMES,
        PRESET_NAMES,
        PUBLISHED_PRESETS,
        SPEED_NAMES,
        TAIL_NAMES,
    )

    choices = {
        "preset": set(PRESET_NAMES) - (set(PUBLISHED_PRESETS) - {"paper"}),
        "tail": set(TAIL_NAMES) - NAMES,
        "method": set(METHOD_NAMES) - NAMES,
        "speed": set(SPEED_NAMES),
        "curve": set(CURVES),
    }
    for name, values in choices.items():
        for language in ("en", *LANGUAGES):
            said = {key.removeprefix(f"option_{name}_") for key in texts(language) if key.startswith(f"option_{name}_")}
            assert said == values, (language, name)


def test_an_english_choice_is_its_value() -> None:
    options = {key: text for key, text in texts("en").items() if key.startswith("option_") and key != "option_label"}
    assert all(key.split("_", 2)[2] == text for key, text in options.items())


def test_files_are_sorted_as_the_english_one_and_then_by_the_keys_of_the_core() -> None:
    for language in LANGUAGES:
        assert list(texts(language)) == list(english()), language
