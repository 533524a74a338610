"""Pictures of schedules, runs, selections and clips, drawn with PIL alone; sizes in pixels, colours uint8 RGB."""

from .blocks import block_overlays, block_sheet, message_picture
from .canvas import stack
from .clips import as_frames, difference, side_by_side
from .curve import even_steps, mean_density, schedule_curve
from .density import density_map, error_text, report_sheet, seconds_per_step

__all__ = [
    "as_frames",
    "block_overlays",
    "block_sheet",
    "density_map",
    "difference",
    "error_text",
    "even_steps",
    "mean_density",
    "message_picture",
    "report_sheet",
    "schedule_curve",
    "seconds_per_step",
    "side_by_side",
    "stack",
]
