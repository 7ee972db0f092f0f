"""Layout of contact sheets: columns, fonts that have a text's letters, and line breaks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from PIL import ImageFont

FONT_FAMILIES = (
    "DejaVu Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
)
"""Fonts in order of preference: the first with all letters of a text is used. matplotlib ships
DejaVu."""


def columns_for(n: int) -> int:
    """Columns of a grid of ``n``: about as many as rows, or a few more if that leaves fewer
    gaps."""
    root = math.ceil(math.sqrt(n))
    return min(range(root, max(root, round(root * 1.5)) + 1), key=lambda across: -n % across)


@cache
def font(family: str, height: int) -> Any:
    """A PIL font of an installed family, or of matplotlib's default."""
    from matplotlib import font_manager

    return ImageFont.truetype(font_manager.findfont(family), height)


@cache
def _glyphs(family: str) -> frozenset[int] | None:
    """Code points of an installed font family; None if it is not installed."""
    from matplotlib import font_manager, ft2font

    try:
        path = font_manager.findfont(family, fallback_to_default=False)
    except ValueError:
        return None
    return frozenset(ft2font.FT2Font(path).get_charmap())


def font_for(text: str, height: int) -> Any:
    """The first installed font that lacks the fewest of the text's letters."""
    return font(_best_family(text)[0], height)


def count_missing_glyphs(texts: Iterable[str]) -> int:
    """How many texts have letters that no installed font has; these are drawn as boxes."""
    return sum(_best_family(text)[1] > 0 for text in texts)


def _best_family(text: str) -> tuple[str, int]:
    """The best font family, and how many of the text's letters it lacks."""
    letters = {ord(c) for c in text if not c.isspace()}
    lacks = {f: len(letters - had) for f in FONT_FAMILIES if (had := _glyphs(f)) is not None}
    best = min(lacks, key=lambda f: lacks[f])
    return best, lacks[best]


def wrap(text: str, font: Any, width: int, most: int) -> list[str]:
    """Wrap text to at most ``most`` lines of ``width`` pixels.

    Words longer than a line are broken; text that does not fit ends in "…".
    """
    lines, line = [], ""
    for word in text.split() or [""]:
        tried = f"{line} {word}" if line else word
        if font.getlength(tried) <= width:
            line = tried
            continue
        if line:
            lines.append(line)
        line = word
        while font.getlength(line) > width:
            fit = _longest_fit(line, lambda part: font.getlength(part) <= width)
            lines.append(line[:fit])
            line = line[fit:]
        if len(lines) > most:
            break
    lines.append(line)
    if len(lines) > most:
        lines = [*lines[: most - 1], truncate(f"{lines[most - 1]} …", font, width)]
    return lines


def truncate(text: str, font: Any, width: int) -> str:
    """Cut text to ``width`` pixels, ending in "…" if it does not fit."""
    if font.getlength(text) <= width:
        return text
    text = text.rstrip(" …")
    text = text[: _longest_fit(text, lambda part: font.getlength(f"{part} …") <= width)]
    whole = text.rpartition(" ")[0]  # cut within a word only if nothing else fits
    return f"{whole} …" if len(whole) > len(text) // 2 else f"{text.rstrip()}…"


def _longest_fit(text: str, fits: Callable[[str], bool]) -> int:
    """How many leading characters fit; at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(text[:middle]) else (low, middle - 1)
    return low
