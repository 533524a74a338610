"""What one query block of a captured call sees, drawn over the frames, with the head's whole draft map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...run.capture import CapturedCall
from .canvas import ACCENT, FAINT, INK, LINES, PAPER, blank, ramp, stack, wrapped, write

Frames = NDArray[np.uint8]
_HEAT_LOW = np.array((20, 20, 60), dtype=np.float64)
_HEAT_HIGH = np.array((255, 214, 64), dtype=np.float64)
_KEPT = np.array((64, 224, 160), dtype=np.float64)


def resample_frames(frames: Frames, count: int, height: int, width: int) -> Frames:
    """`count` frames of (F, h, w, 3) spread over the clip, each height x width; one frame serves for all."""
    picked = np.linspace(0, len(frames) - 1, count).round().astype(int)
    resized = [
        np.asarray(Image.fromarray(frames[index]).resize((width, height), Image.Resampling.BILINEAR))
        for index in picked
    ]
    return np.stack(resized)


def block_overlays(
    call: CapturedCall, head: int, query_block: int, frames: Frames | None = None, *, scale: int = 8
) -> tuple[Frames, Frames]:
    """Every latent frame twice: under the draft map as heat, and with the kept blocks bright and the skipped dark.

    Args:
        call: the captured call; head, query_block: which of its rows.
        frames: (F, h, w, 3) uint8 pictures of the same clip; None draws on grey.
        scale: pixels per token.

    Returns:
        heat and kept, each (T, scale * H, scale * W, 3) uint8. The query block is outlined in red in both.
    """
    draft, keep, query = (volume.numpy() for volume in call.per_token(head, query_block))
    t, h, w = draft.shape
    if frames is None:
        frames = np.full((1, h, w, 3), 150, dtype=np.uint8)
    below = resample_frames(frames, t, h * scale, w * scale).astype(np.float64)
    heat_share = np.sqrt(_enlarged(draft / max(float(draft.max()), 1e-12), scale))[..., None]
    kept = _enlarged(keep, scale)[..., None]
    grey = below.mean(-1, keepdims=True)
    heat = (0.35 * grey + 0.65 * _HEAT_LOW) * (1 - heat_share) + (0.35 * below + 0.65 * _HEAT_HIGH) * heat_share
    chosen = np.where(kept, 0.85 * below + 0.15 * _KEPT, 0.28 * grey)
    chosen[_outline(keep, scale)] = _KEPT
    for picture in (heat, chosen):
        picture[_outline(query, scale, thickness=2)] = ACCENT
    return np.rint(heat).clip(0, 255).astype(np.uint8), np.rint(chosen).clip(0, 255).astype(np.uint8)


def _enlarged(volume: NDArray[np.generic], scale: int) -> NDArray[np.generic]:
    return volume.repeat(scale, axis=1).repeat(scale, axis=2)


def _outline(mask: NDArray[np.bool_], scale: int, thickness: int = 1) -> NDArray[np.bool_]:
    """Pixels just inside the border of an enlarged mask (T, H, W), frame by frame."""
    large = np.pad(_enlarged(mask, scale), ((0, 0), (thickness, thickness), (thickness, thickness)))
    inner = large.copy()
    for axis in (1, 2):
        for shift in range(1, thickness + 1):
            inner &= np.roll(large, shift, axis) & np.roll(large, -shift, axis)
    edge = large & ~inner
    inside: NDArray[np.bool_] = edge[:, thickness:-thickness, thickness:-thickness]
    return inside


def draft_matrix(call: CapturedCall, head: int, query_block: int, *, size: int = 360) -> Image.Image:
    """The head's draft map beside its kept pairs, query blocks downwards, key blocks to the right."""
    draft = call.draft[head].float().numpy()
    keep = call.keep[head].numpy()
    # Log scale from a hundredth of the even share to the largest value: softmax rows span several decades.
    low = 0.01 / draft.shape[1]
    shades = np.log(np.maximum(draft, low) / low)
    maps = [ramp(shades, float(shades.max())), np.where(keep[..., None], np.uint8(40), np.uint8(236)).repeat(3, axis=2)]
    parts = []
    for picture, label in zip(maps, ("draft map (log scale)", "kept pairs"), strict=True):
        shape = (size, max(8, round(size * draft.shape[0] / draft.shape[1])))
        drawn = Image.fromarray(picture).resize(
            shape, Image.Resampling.BOX if picture.shape[1] > size else Image.Resampling.NEAREST
        )
        panel, pen = blank(size + 2, shape[1] + 38)
        panel.paste(drawn, (1, 20))
        pen.rectangle((0, 19, size + 1, 20 + shape[1]), outline=LINES)
        y = 20 + (query_block + 0.5) / draft.shape[0] * shape[1]
        pen.line((0, y, 6, y), fill=ACCENT, width=2)
        pen.line((size - 5, y, size + 1, y), fill=ACCENT, width=2)
        write(pen, (0, 2), label, size=12)
        write(
            pen, (size, shape[1] + 24), "key blocks to the right, query blocks down", size=11, fill=FAINT, anchor="ra"
        )
        parts.append(panel)
    return stack(parts, across=True, gap=20)


def block_sheet(
    call: CapturedCall,
    head: int,
    query_block: int,
    frames: Frames | None = None,
    *,
    columns: int = 5,
    width: int = 1100,
) -> Image.Image:
    """One picture: heat and kept blocks over up to `columns` frames (the query's own among them), and the matrices."""
    grid = call.layout.grid
    columns = min(columns, grid.t)
    gap = 6
    scale = max(2, (width - gap * (columns - 1)) // (columns * grid.w))
    heat, kept = block_overlays(call, head, query_block, frames, scale=scale)
    _, _, query = call.per_token(head, query_block)
    own = int(query.flatten(1).any(1).nonzero()[0])
    shown = np.linspace(0, grid.t - 1, columns).round().astype(int)
    if own not in shown:
        shown[np.abs(shown - own).argmin()] = own
    strips = []
    for label, volume in (("draft map of the outlined query block", heat), ("its kept blocks (skipped: dark)", kept)):
        strip = stack([Image.fromarray(volume[t]) for t in shown], across=True, gap=gap)
        panel, pen = blank(strip.width, strip.height + 36)
        panel.paste(strip, (0, 20))
        write(pen, (0, 2), label, size=12)
        for index, t in enumerate(shown):
            x = index * (grid.w * scale + gap)
            write(pen, (x, strip.height + 22), f"latent frame {t}", size=11, fill=FAINT)
        strips.append(panel)
    place = call.position
    title = f"Step {place.step + 1}, layer {place.layer}, head {head} of {call.heads}"
    row = float(call.keep[head, query_block].float().mean())
    told = (
        f"{call.layout}; backend {call.backend}. This head computes {call.density(head):.1%} of its block pairs "
        f"exactly ({row:.1%} for the outlined query block); they hold {call.kept_mass(head):.1%} of the draft map's "
        "mass."
    )
    body = [*strips, draft_matrix(call, head, query_block)]
    lines = wrapped(told, max(part.width for part in body), 12)
    heading, pen = blank(max(part.width for part in body), 28 + 16 * len(lines))
    write(pen, (0, 0), title, size=16)
    for index, line in enumerate(lines):
        write(pen, (0, 24 + 16 * index), line, size=12, fill=FAINT)
    sheet = stack([heading, *body], gap=10)
    framed, _ = blank(sheet.width + 28, sheet.height + 28, PAPER)
    framed.paste(sheet, (14, 14))
    return framed


def message_picture(text: str, width: int = 520) -> Image.Image:
    """A picture that says why there is none."""
    lines = wrapped(text, width - 32, 14)
    picture, pen = blank(width, 32 + 20 * len(lines))
    pen.rectangle((0, 0, picture.width - 1, picture.height - 1), outline=LINES)
    for index, line in enumerate(lines):
        write(pen, (16, 16 + 20 * index), line, size=14, fill=INK)
    return picture
