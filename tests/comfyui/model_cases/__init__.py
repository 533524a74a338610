"""Models of the coverage test: ComfyUI's own classes at toy size, and the layout each must show. Needs torch only."""

from . import cogvideox, cosmos, hunyuan, hunyuan15, kandinsky5, ltxv, minimax_h3, mochi, wan, wan_variants
from .case import Case
from .hunyuan import HUNYUAN
from .hunyuan15 import HUNYUAN15
from .wan import WAN

__all__ = ["CASES", "HUNYUAN", "HUNYUAN15", "WAN", "Case"]

# In the order of the tables in the documentation.
_FAMILIES = (wan, wan_variants, hunyuan, hunyuan15, kandinsky5, cosmos, mochi, cogvideox, ltxv, minimax_h3)
CASES: tuple[Case, ...] = tuple(case for family in _FAMILIES for case in family.CASES)
