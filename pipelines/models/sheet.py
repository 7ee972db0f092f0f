"""Several pictures in one: a plain grid, or a contact sheet with a caption below each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pipelines.layout import columns_for, font, font_for, truncate, wrap

Pictures = np.ndarray[Any, np.dtype[np.uint8]]

INK, FAINT = "#1c1c1e", "#636366"

SHOWN_SIDE = 256
"""Least side in pixels to which small pictures are enlarged by default."""

LINES = 3
"""Lines of a caption, at most."""

LEAST_CELL = 160
"""Least width of a caption in pixels; smaller pictures stand further apart."""


def default_scale(resolution: int) -> int:
    """Factor that brings pictures of this side to about :data:`SHOWN_SIDE` pixels."""
    return max(1, SHOWN_SIDE // resolution)


def columns_of(captions: Sequence[str]) -> int:
    """Columns of a sheet: a row for each caption if all have the same number of pictures."""
    counts = [count for _, count in _runs(captions)]
    if len(counts) > 1 and counts[0] > 1 and len({*counts}) == 1:
        return counts[0]
    return columns_for(len(captions))


def enlarged(picture: np.ndarray[Any, Any], scale: int) -> Any:
    """A PIL image of pixels, uint8 [R, R, 3], enlarged by a factor, bicubic."""
    image = Image.fromarray(picture)
    if scale == 1:
        return image
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)


def grid(pictures: Pictures, *, columns: int, scale: int, gap: int = 4) -> Any:
    """Lay out images, uint8 [N, R, R, 3], in rows on white.

    Args:
        columns: images per row.
        scale: factor by which every image is enlarged, bicubic.
        gap: white pixels between images.

    Returns:
        A PIL image.
    """
    side = pictures.shape[1] * scale
    rows = -(-len(pictures) // columns)
    columns = min(columns, len(pictures))
    size = (columns * (side + gap) + gap, rows * (side + gap) + gap)
    canvas = Image.new("RGB", size, "white")
    for i, picture in enumerate(pictures):
        at = (gap + i % columns * (side + gap), gap + i // columns * (side + gap))
        canvas.paste(enlarged(picture, scale), at)
    return canvas


def contact_sheet(
    pictures: Pictures,
    captions: Sequence[str],
    notes: Sequence[str],
    *,
    columns: int,
    scale: int,
    footer: str = "",
) -> Any:
    """Lay out images, uint8 [N, R, R, 3], in rows, with a caption and a note below each.

    Neighbours in a row that share a caption have it once, below the first of them and as wide as
    all of them. Letters that no installed font has are drawn as boxes.

    Args:
        captions: a caption of each image, wrapped to at most :data:`LINES` lines, then cut.
        notes: a short text of each image in a smaller type, such as its seed.
        columns: images per row.
        scale: factor by which every image is enlarged, bicubic.
        footer: what holds for all images, in at most :data:`LINES` lines below them.

    Returns:
        A PIL image.
    """
    side = pictures.shape[1] * scale
    cell = max(side, LEAST_CELL)
    height = max(13, side // 18)  # of the type, pixels
    small, line, gap = round(height * 0.82), round(height * 1.35), round(height * 1.4)
    columns = min(columns, len(pictures))
    rows = [range(i, min(i + columns, len(pictures))) for i in range(0, len(pictures), columns)]
    texts = []
    for row in rows:
        found = []
        for first, count in _runs([captions[i] for i in row]):
            width = count * (cell + gap) - gap
            letters = font_for(captions[row[first]], height)
            found.append((first, letters, wrap(captions[row[first]], letters, width, LINES)))
        texts.append(found)
    below = [gap // 2 + line * (max(len(t) for *_, t in found) + 1) for found in texts]
    total = gap + sum(side + text + gap for text in below)
    width = columns * (cell + gap) + gap
    foot = font_for(footer, small)
    ends = wrap(footer, foot, width - 2 * gap, LINES) if footer else []
    total += len(ends) * line + gap * bool(ends)
    canvas = Image.new("RGB", (width, total), "white")
    draw = ImageDraw.Draw(canvas)
    faint = font("DejaVu Sans", small)
    y = gap
    for row, found, text_height in zip(rows, texts, below, strict=True):
        for column, i in enumerate(row):
            x = gap + column * (cell + gap)
            canvas.paste(enlarged(pictures[i], scale), (x, y))
            note = truncate(notes[i], faint, cell)
            draw.text((x, y + side + gap // 2), note, FAINT, faint)
        for first, letters, lines in found:
            x = gap + first * (cell + gap)
            for number, text in enumerate(lines, 1):
                draw.text((x, y + side + gap // 2 + number * line), text, INK, letters)
        y += side + text_height + gap
    for number, text in enumerate(ends):
        draw.text((gap, y + number * line), text, FAINT, foot)
    return canvas


def _runs(captions: Sequence[str]) -> list[tuple[int, int]]:
    """(first, count) of each run of equal captions."""
    starts = [i for i, c in enumerate(captions) if i == 0 or captions[i - 1] != c]
    return [(a, b - a) for a, b in zip(starts, [*starts[1:], len(captions)], strict=True)]
