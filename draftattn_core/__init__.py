"""Attention over a token grid: order, draft, selection, tail, schedule, report, backends. Knows no host."""

from .attention import Attention, attend, draft_attention
from .geometry.grid import TokenGrid
from .geometry.layout import PAPER_TILE, Layout, TableCache
from .method.policy import Policy
from .run.published import published
from .run.report import DenseReason, Position, RunReport
from .run.run import Run
from .run.schedule import Schedule
from .run.settings import Settings

__all__ = [
    "PAPER_TILE",
    "Attention",
    "DenseReason",
    "Layout",
    "Policy",
    "Position",
    "Run",
    "RunReport",
    "Schedule",
    "Settings",
    "TableCache",
    "TokenGrid",
    "attend",
    "draft_attention",
    "published",
]
