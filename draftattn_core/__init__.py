"""Attention over a token grid: order, draft, selection, tail, schedule, report, backends. Knows no host."""

from .attention import Attention, attend, draft_attention
from .grid import TokenGrid
from .layout import PAPER_TILE, Layout, TableCache
from .policy import Policy

__all__ = ["PAPER_TILE", "Attention", "Layout", "Policy", "TableCache", "TokenGrid", "attend", "draft_attention"]
