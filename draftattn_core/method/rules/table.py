"""The table of selection rules: what users write, and where it is. It imports none of them."""

from __future__ import annotations

# Name users write -> file here and name of its Rule there.
RULES = {
    "head": "head:RULE",
    "row": "row:RULE",
    "top_p": "top_p:RULE",
    "draft": "draft:RULE",
    "svg": "svg:RULE",
    "radial": "radial:RULE",
    "adaspa": "adaspa:RULE",
    "ear": "ear:RULE",
    "tail_error": "ear:TAIL_RULE",
    "calibatt": "calibatt:RULE",
}


def check_rule(name: str) -> None:
    """Raises ValueError if no rule is called `name`."""
    if name not in RULES:
        raise ValueError(f"unknown selection method {name!r}: choose one of {', '.join(RULES)}")
