"""Step caches of others: two that answer the evaluations of one model would each take the other's answers for its own
model's."""

from __future__ import annotations

import re

# What others that answer evaluations themselves call their keys, wrappers, functions and classes. CacheDiT's nodes for
# Wan and LTX-2 call theirs by the model.
_CACHES = re.compile(
    r"(easy|lazy|tea|mag|first[-_ ]?block|fb|db|dual[-_ ]?block|wave[-_ ]?speed|wan|ltx[0-9]*|hunyuan(?:[-_ ]?video)?)"
    r"[-_ ]?cache|cache[-_ ]?dit|taylor[-_ ]?seer",
    re.IGNORECASE,
)


def names_cache(name: str) -> bool:
    """Whether a name, such as a function's with its module, is one that step caches give themselves."""
    return _CACHES.search(name) is not None
