"""A target and what was measured of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """A target, whether it was met, and the figures that say so; `met` is None where too little was measured."""

    target: str
    met: bool | None
    found: str

    @property
    def word(self) -> str:
        return {True: "met", False: "**missed**", None: "not measured"}[self.met]
