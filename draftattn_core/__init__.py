"""Attention over a token grid: order, draft, selection, tail, schedule, report, backends. Knows no host."""

from .attention import Attention, attend, draft_attention
from .grid import TokenGrid
from .layout import PAPER_TILE, Layout, TableCache
from .policy import Policy
from .report import DenseReason, Position, RunReport
from .schedule import Schedule
from .session import Session, Settings

__all__ = [
    "PAPER_TILE",
    "Attention",
    "DenseReason",
    "Layout",
    "Policy",
    "Position",
    "RunReport",
    "Schedule",
    "Session",
    "Settings",
    "TableCache",
    "TokenGrid",
    "attend",
    "draft_attention",
]
