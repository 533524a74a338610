"""What the core says, read from its source: every phrase with its key, its English and its values."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tools.comfyui.path import PACK_ROOT

CORE = PACK_ROOT / "draftattn_core"


@dataclass(frozen=True)
class Said:
    """A phrase in the source.

    Attributes:
        where: file and line.
        key, english: as written; None where they are no literal.
        values: names that are given for its places; None where they are not all written out.
    """

    where: str
    key: str | None
    english: str | None
    values: frozenset[str] | None

    def fault(self) -> str | None:
        """What keeps it from being translated; None for nothing."""
        if self.key is None or self.english is None or self.values is None:
            return f"{self.where}: write key, English and values out where the phrase is said"
        if self.values != places(self.english):
            return f"{self.where}: {self.key} has other values than places"
        return None


def places(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\{(\w+)\}", text))


def _literal(node: ast.expr | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def phrases(source: str, where: str) -> Iterator[Said]:
    """Every phrase in a file's text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Phrase":
            key, english = ([*node.args, None, None][:2]) if len(node.args) <= 2 else (None, None)
            names = [keyword.arg for keyword in node.keywords]
            values = None if None in names else frozenset(name for name in names if name)
            yield Said(f"{where}:{node.lineno}", _literal(key), _literal(english), values)


def core_files() -> Iterator[tuple[str, str]]:
    """Text and name of every file of the core but the one that defines phrases."""
    for path in sorted(CORE.rglob("*.py")):
        if path != CORE / "phrase.py":
            yield path.read_text(encoding="utf-8"), path.relative_to(PACK_ROOT).as_posix()


@cache
def said_by_core() -> tuple[Said, ...]:
    return tuple(one for source, where in core_files() for one in phrases(source, where))


def core_texts() -> dict[str, str]:
    """English of the core's phrases by key, sorted."""
    found = {one.key: one.english for one in said_by_core() if one.key is not None and one.english is not None}
    return dict(sorted(found.items()))


# Functions that take what is said to the user, each as its first argument.
TELLING = frozenset({"note", "tell", "explain", "wait", "report", "_tell", "_wait", "_end", "count_error"})
# Texts that are made of something else than a key.
WITHOUT_KEY = frozenset({"Foreign", "Text"})


def keyless(source: str, where: str) -> Iterator[str]:
    """Places where an English sentence without a key is told to the user."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in TELLING | WITHOUT_KEY and isinstance(node.args[0], ast.JoinedStr | ast.BinOp | ast.Constant):
            yield f"{where}:{node.lineno}: {name} is given a text without a key"


def files_that_tell() -> Iterator[tuple[str, str]]:
    """The core, and what of the nodes speaks in runs."""
    yield from core_files()
    for path in sorted(Path(PACK_ROOT / "nodes" / "host").glob("*.py")):
        yield path.read_text(encoding="utf-8"), path.relative_to(PACK_ROOT).as_posix()
