"""What kernels made of a group of heads."""

from __future__ import annotations

from typing import NamedTuple

from ...method.draft import Draft
from ..request import AttendRequest
from .launch import Warps


class Computed(NamedTuple):
    """The request that a group of heads amounts to, its draft, and the warps of `attend`."""

    request: AttendRequest
    draft: Draft
    warps: Warps
