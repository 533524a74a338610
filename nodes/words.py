"""Texts for users: English here, and for the browser their key and values, which it says in the user's language.

`locales/en/main.json` is the one source of the English texts, of the scripts in `web/` too; other languages have the
same keys. The host hands all of them to the browser. What goes to a log or to a host's own message stays English.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LOCALES = Path(__file__).resolve().parents[1] / "locales"
# The host merges the files of all packs: each has a section of its own.
SECTION = "draftattention"
PLACE = re.compile(r"\{(\w+)\}")
# Which texts of the files stand between the parts of a longer one.
LINES, LIST, CLAUSES, REMEDY, OR = "join_lines", "join_list", "join_clauses", "join_remedy", "join_or"


def texts(language: str) -> dict[str, str]:
    """The texts of a language by key, with the places of values in braces."""
    path = LOCALES / language / "main.json"
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))[SECTION]
    return found


ENGLISH: Mapping[str, str] = texts("en")


class Words(str):
    """An English text that remembers its key and its values, which may be texts of this kind again.

    Raises:
        KeyError: if there is no such text, or a value that it has a place for is missing.
    """

    key: str
    values: Mapping[str, Any]

    def __new__(cls, key: str, **values: Any) -> Words:
        made = super().__new__(cls, PLACE.sub(lambda place: str(values[place[1]]), ENGLISH[key]))
        made.key, made.values = key, values
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is the text alone."""
        return str, (str(self),)


class Joined(str):
    """Several texts as one, which remembers its parts. `by` is the key of what stands between them."""

    parts: tuple[str, ...]
    by: str

    def __new__(cls, parts: Iterable[str], by: str) -> Joined:
        kept = tuple(parts)
        made = super().__new__(cls, ENGLISH[by].join(kept))
        made.parts, made.by = kept, by
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is the text alone."""
        return str, (str(self),)


def plain(text: Any) -> Any:
    """What the browser's `tell` understands: a text as it is, or the keys and values it was made from."""
    if isinstance(text, Words):
        return {"key": text.key, "values": {name: plain(value) for name, value in text.values.items()}}
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
