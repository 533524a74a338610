"""Texts for users as data: English sentences that remember their key and values.

The core speaks English and knows no other language. Each sentence stands once, where it is said, with a key; a host
that has the key in its user's language puts the values into that text instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

P = TypeVar("P", bound="Phrase")
PLACE = re.compile(r"\{(\w+)\}")
# What stands between the parts of a `Joined`, by its key.
SEPARATORS: Mapping[str, str] = {
    "join_lines": "\n",
    "join_list": ", ",
    "join_clauses": "; ",
    "join_remedy": ": ",
    "join_or": " or ",
    "join_and": " and ",
}
LINES, LIST, CLAUSES, REMEDY, OR, AND = SEPARATORS


class Text(str):
    """An English text for users. What it was made from is known to its subclasses alone.

    A copy (by pickle or `copy`) is a plain text.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


class Phrase(Text):
    """A sentence, or a part of one.

    Attributes:
        key: names it for other languages.
        values: for its places; numbers, texts, or texts of this module again.

    Raises:
        KeyError: if a value that it has a place for is missing.
    """

    key: str
    values: Mapping[str, Any]

    def __new__(cls: type[P], key: str, english: str, **values: Any) -> P:
        """`english` has places for values in braces: "step {step}"."""
        made = super().__new__(cls, PLACE.sub(lambda place: str(values[place[1]]), english))
        made.key, made.values = key, values
        return made


class Joined(Text):
    """Several texts as one.

    Attributes:
        parts: the texts.
        by: key of what stands between them, one of `SEPARATORS`.
    """

    parts: tuple[str, ...]
    by: str

    def __new__(cls, parts: Iterable[str], by: str) -> Joined:
        kept = tuple(parts)
        made = super().__new__(cls, SEPARATORS[by].join(kept))
        made.parts, made.by = kept, by
        return made


class Foreign(Text):
    """What others say, such as a driver or a compiler: it has no key and stays as it is in every language."""


def said(error: BaseException) -> str:
    """The message of an error, with its key where it was raised with one."""
    only = error.args[0] if len(error.args) == 1 else None
    return only if isinstance(only, Text) else str(error)


def in_words(error: BaseException) -> Text:
    """The message of an error of ours as a text for users."""
    found = said(error)
    return found if isinstance(found, Text) else Foreign(found)
