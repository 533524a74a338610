"""Texts for users: English here, and for the browser their key and values, which it says in the user's language.

`locales/en/main.json` is the one source of the English texts of nodes and of the scripts in `web/`; what the core says
stands in the core (`phrase.Phrase`). Other languages have the keys of both. The host hands all of them to the browser.
What goes to a log or to a host's own message stays English.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from ..draftattn_core.phrase import CLAUSES, LINES, LIST, OR, REMEDY, Joined, Phrase
from ..draftattn_core.run.evaluation import Outcome, Uncorrected
from ..draftattn_core.run.report import DenseReason
from ..draftattn_core.run.step_cache.log import Reason

__all__ = ["CLAUSES", "ENGLISH", "LINES", "LIST", "OR", "REMEDY", "Joined", "Words", "plain", "term", "texts", "told"]

LOCALES = Path(__file__).resolve().parents[1] / "locales"
# The host merges the files of all packs: each has a section of its own.
SECTION = "draftattention"


def texts(language: str) -> dict[str, str]:
    """The texts of a language by key, with the places of values in braces."""
    path = LOCALES / language / "main.json"
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))[SECTION]
    return found


ENGLISH: Mapping[str, str] = texts("en")
# Lists of names of the core's, and what their keys begin with.
TERMS: Mapping[type[Enum], str] = {
    DenseReason: "reason",
    Outcome: "outcome",
    Reason: "computed",
    Uncorrected: "uncorrected",
}
W = TypeVar("W", bound="Words")


class Words(Phrase):
    """A phrase of the nodes' own, whose English stands in `locales/en/main.json` under its key.

    Raises:
        KeyError: if there is no such text, or a value that it has a place for is missing.
    """

    def __new__(cls: type[W], key: str, **values: Any) -> W:
        return super().__new__(cls, key, ENGLISH[key], **values)


def plain(text: Any) -> Any:
    """What the browser's `tell` understands: a text as it is, or the keys and values it was made from.

    A phrase of the core's comes with its English, which stands in no file.
    """
    if isinstance(text, Phrase):
        values = {name: plain(value) for name, value in text.values.items()}
        english = {} if isinstance(text, Words) else {"text": str(text)}
        return {"key": text.key, "values": values, **english}
    if isinstance(text, Enum) and type(text) in TERMS:
        return plain(term(TERMS[type(text)], str(text)))
    if isinstance(text, Joined):
        return {"parts": [plain(part) for part in text.parts], "by": text.by}
    return text if isinstance(text, int | float) else str(text)


def term(kind: str, name: str) -> str:
    """A name of the core's, such as a reason, in words; one that has none here, as it is."""
    key = f"{kind}_{name}"
    return Words(key) if key in ENGLISH else name


def told(text: str) -> dict[str, Any]:
    """A text for the browser among what a node shows: in English, and as `plain` has it."""
    return {"text": (str(text),), "draftattention_words": (plain(text),)}
