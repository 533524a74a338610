"""Every text has its key in every language that is shipped, with the same places for values; no key is left over."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from draftattention.draftattn_core.method.policy import METHODS, TAILS
from draftattention.draftattn_core.run.evaluation import Outcome
from draftattention.draftattn_core.run.report import DenseReason
from draftattention.draftattn_core.run.step_cache.log import Reason
from tools.comfyui.path import PACK_ROOT

LOCALES = PACK_ROOT / "locales"
SECTION = "draftattention"
LANGUAGES = sorted(path.name for path in LOCALES.iterdir() if path.name != "en")
# Texts whose keys are put together from a name of the core's.
FAMILIES = {
    "reason": [str(one) for one in DenseReason],
    "remedy": [str(one) for one in DenseReason],
    "computed": [str(one) for one in Reason],
    "outcome": [one.value for one in Outcome],
    "source": ["profile", "this run"],
    "bucket": ["early", "middle", "late"],
    "fact": ["system", "device"],
    "maps": ["frame", "step", "layer", "head"],
    "one": ["prompt", "run"],
    "many": ["prompts", "runs"],
    "cancelled": ["after", "after_of", "in", "in_of"],
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
    assert differences(texts("en"), texts(language)) == []


def test_each_fault_of_a_language_is_found() -> None:
    english = {"a": "{count} steps", "b": "dense", "c": "two\nlines"}
    assert differences(english, {"a": "{count} Schritte", "b": "dicht", "c": "zwei\nZeilen"}) == []
    assert differences(english, {"b": "", "c": "eine", "d": "", "a": "{number} Schritte"}) == [
        "a has other places for values",
        "b is empty",
        "c has other lines",
        "d is left over",
    ]
    assert differences(english, {}) == ["a is missing", "b is missing", "c is missing"]


def used_keys() -> set[str]:
    """Keys that the code names, whole or by their family."""
    code = sources("nodes", "*.py") + sources("web", "*.js")
    named = set(re.findall(r"""["'`]([a-z]+_[a-z_]+|[a-z]+)["'`]""", code))
    return named | {f"{family}_{name}" for family, names in FAMILIES.items() for name in names}


def test_every_english_text_is_used() -> None:
    used = used_keys()
    unused = [key for key in texts("en") if key not in used and not key.startswith("option_")]
    assert unused == []


def test_every_text_that_the_code_asks_for_is_there() -> None:
    english = texts("en")
    asked = set(re.findall(r'Words\(\s*"(\w+)"', sources("nodes", "*.py")))
    asked |= set(re.findall(r'\bsay\(\s*"(\w+)"', sources("web", "*.js")))
    asked |= {f"{family}_{name}" for family, names in FAMILIES.items() for name in names}
    assert len(asked) > 150
    assert sorted(asked - english.keys()) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_node_texts_are_those_of_the_other_languages_and_nothing_the_front_end_compiles(language: str) -> None:
    found = dict(leaves(read(language, "nodeDefs")))
    assert set(found) == {path for path, _ in leaves(read("zh", "nodeDefs"))}
    assert [path for path, text in found.items() if not text.strip()] == []
    assert [path for path, text in found.items() if SPECIAL.search(text)] == []


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


def test_files_are_sorted_as_the_english_one() -> None:
    for language in LANGUAGES:
        assert list(texts(language)) == list(texts("en")), language
