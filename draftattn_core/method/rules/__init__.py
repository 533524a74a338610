"""Selection rules: each file is one way to choose the block pairs that are computed exactly.

A rule is a file here that defines a `Rule` (rule.py) and one line in table.py. Its file is imported when the rule is
first used, so a rule nobody uses costs nothing and may import anything of the core below the backends.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .table import RULES, check_rule

if TYPE_CHECKING:
    from .rule import Rule


def rule_of(name: str) -> Rule:
    """The rule called `name`; ValueError if there is none."""
    check_rule(name)
    file, _, attribute = RULES[name].partition(":")
    rule: Rule = getattr(importlib.import_module(f".{file}", __name__), attribute)
    return rule
