"""Draw pictures of a data set version, with captions and keys, on one contact sheet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pipelines.layout import columns_for, font, font_for, truncate, wrap
from pipelines.store import columns
from pipelines.store.dataset import Version
from pipelines.store.shard_file import ShardFiles
from pipelines.store.shards import pixels_column

SIDE, GAP, MARGIN = 288, 24, 32  # pixels
CAPTION, KEY, TITLE = 17, 12, 20  # font sizes, pixels
LINES = 5  # of a caption, at most
INK, FAINT, EDGE = "#1c1c1e", "#8e8e93", "#e5e5ea"


@dataclass(frozen=True)
class Sample:
    """One row on the sheet."""

    key: str
    caption: str
    picture: Any
    """PIL image."""


def evenly_spaced(rows: int, n: int) -> list[int]:
    """Up to ``n`` row numbers, each from the middle of an equal part of ``rows``."""
    n = min(n, rows)
    return [(2 * i + 1) * rows // (2 * n) for i in range(n)]


def samples(version: Version, resolution: int, n: int) -> list[Sample]:
    """Pick rows of a stage, evenly spaced; the same ones every time.

    Args:
        version: The data set version.
        resolution: Side of the stage's pictures, in pixels.
        n: How many rows to pick at most.

    Raises:
        ValueError: The version has no picture of this resolution, or a shard is missing.
    """
    usable = version.usable(resolution)
    starts = np.concatenate([[0], np.cumsum(usable)])
    if not starts[-1]:
        raise ValueError(f"{version.store.full(version.folder)} has no picture of {resolution}")
    files, packing, name = ShardFiles(version), version.header.packing, pixels_column(resolution)
    full = resolution in packing.full
    wanted = [name, *((f"{name}_height", f"{name}_width") if full else ())]
    strings = lru_cache(maxsize=4)(files.strings)
    found = []
    for number in evenly_spaced(int(starts[-1]), n):
        shard = int(np.searchsorted(starts, number, "right")) - 1
        row = number - int(starts[shard])
        group, at = divmod(row, packing.row_group_rows)
        values = files.read(shard, group, wanted)
        size = (resolution, resolution)
        if full:
            size = (
                int(values.numbers[f"{name}_height"][at]),
                int(values.numbers[f"{name}_width"][at]),
            )
        pixels = columns.decoded(values.value(name, at), packing.pictures, size)
        key, caption = (strings(shard, column)[row] for column in ("key", "caption"))
        found.append(Sample(key, caption, Image.fromarray(np.ascontiguousarray(pixels))))
    return found


def draw_sheet(found: list[Sample], title: str) -> Any:
    """A PIL image with a title, and below every picture its caption and key."""
    across = columns_for(len(found))
    rows = [found[i : i + across] for i in range(0, len(found), across)]
    texts = [
        [wrap(p.caption, font_for(p.caption, CAPTION), SIDE, LINES) for p in row] for row in rows
    ]
    line = CAPTION + 6
    heights = [SIDE + 12 + line * max(map(len, row)) + KEY + 10 + GAP for row in texts]
    top = MARGIN + TITLE + GAP
    width = max(2 * MARGIN + across * (SIDE + GAP) - GAP, 2 * MARGIN + 2 * SIDE + GAP)
    canvas = Image.new("RGB", (width, top + sum(heights) + MARGIN - GAP), "white")
    draw = ImageDraw.Draw(canvas)
    heading = font("DejaVu Sans", TITLE)
    [shown] = wrap(title, heading, width - 2 * MARGIN, 1)
    draw.text((MARGIN, MARGIN - 4), shown, INK, heading)
    for row, captions, height in zip(rows, texts, heights, strict=True):
        for i, (pair, lines) in enumerate(zip(row, captions, strict=True)):
            x, y = MARGIN + i * (SIDE + GAP), top
            _place(canvas, draw, pair.picture, x, y)
            y += SIDE + 12
            for text in lines:
                draw.text((x, y), text, INK, font_for(pair.caption, CAPTION))
                y += line
            small = font("DejaVu Sans Mono", KEY)
            draw.text((x, y + 2), truncate(pair.key, small, SIDE), FAINT, small)
        top += height
    return canvas


def _place(canvas: Any, draw: Any, picture: Any, x: int, y: int) -> None:
    """Paste a whole picture as large as it fits; very small pictures stay pixelated."""
    scale = SIDE / max(picture.size)
    size = [max(1, round(side * scale)) for side in picture.size]
    how = Image.Resampling.NEAREST if scale >= 8 else Image.Resampling.LANCZOS
    left, above = x, y + SIDE - size[1]  # left and bottom aligned, next to the caption
    canvas.paste(picture.resize(size, how), (left, above))
    draw.rectangle((left - 1, above - 1, left + size[0], above + size[1]), outline=EDGE)
