"""Numbers and tables as text for the terminal."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Collection, Sequence

USER_INFO = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/?#'\"]*@")
"""An address's scheme, with user and password."""

QUERY_PASSWORD = re.compile(r"([?&](?:password|passwd|pwd)=)[^&#\s'\"]+", re.IGNORECASE)
"""A password in the query of an address, as databases take it."""

AUXILIARY_SUFFIXES = ("_ci95", "_pictures")
"""Endings of metric names whose values belong to another metric, such as its interval."""


def duration(seconds: float) -> str:
    """A time span in hours, minutes or seconds: ``2.1 h``, ``49.0 min``, ``3 s``."""
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def number(value: float) -> str:
    """A number with one or two decimals if it is small: ``5,399``, ``12.3``, ``0.19``."""
    if value >= 100 or not value:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def join_words(words: Sequence[object], last: str) -> str:
    """Join words by commas, the last two by ``last``: ``16, 32 or 64``."""
    *first, end = map(str, words)
    return f"{', '.join(first)} {last} {end}" if first else end


def printable(text: str, *, lines: bool = False) -> str:
    """Escape what a terminal would obey, and lone surrogates, and drop passwords of addresses.

    For everything that is shown.

    Args:
        text: What somebody else may have written, such as a key, a caption, an error or a reason.
        lines: Keep line breaks and tabs, of a text of several lines whose parts are escaped.
    """
    text = without_passwords(text)
    if text.isprintable():
        return text
    return "".join(c if _is_shown(c, lines) else _escaped(c) for c in text)


def without_passwords(text: str) -> str:
    """A text without user, password and passwords in the query of the addresses in it."""
    if "://" not in text:
        return text
    return QUERY_PASSWORD.sub(r"\1…", USER_INFO.sub(r"\1", text))


def has_password(address: str) -> bool:
    """Whether an address holds a password before its host."""
    found = USER_INFO.match(address)
    return found is not None and ":" in found[0][found.end(1) :]


def _is_shown(character: str, lines: bool) -> bool:
    return (
        character.isprintable()
        or unicodedata.category(character) == "Zs"  # spaces of other widths
        or (lines and character in "\n\t")
    )


def _escaped(character: str) -> str:
    if character == "\x7f":
        return "\\u007f"  # as JSON has it, which leaves this one alone
    return character.encode("unicode_escape").decode()


def align_columns(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Lay out a table as one line per row; columns without any text are left out.

    Args:
        rows: the cells; every row has the same number. They are escaped by :func:`printable`.
        right: indices of the columns to align to the right.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
            if width
        ).rstrip()
        for row in rows
    ]


def fitted(parts: Sequence[str], width: int | None = None, indent: int = 0) -> str:
    """Join parts by two spaces, on several lines where one would be too long.

    Lines break between parts, and within a part only if it is too long by itself.

    Args:
        parts: they are escaped by :func:`printable`.
        width: characters of a line; None for one line of any length.
        indent: spaces before all lines but the first.
    """
    parts = [printable(part) for part in parts]
    if width is None:
        return "  ".join(parts)
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"  {part}"
            continue
        room = max(20, width - indent)
        for line in [part] if len(part) <= room else textwrap.wrap(part, room):
            lines.append(f"{' ' * indent if lines else ''}{line}")
    return "\n".join(lines)


def folded(text: str, width: int, indent: int = 4) -> str:
    """Fold lines that are too long at spaces; columns before the fold stay aligned.

    Args:
        width: characters of a line.
        indent: spaces before what continues a line, besides the line's own.
    """
    lines: list[str] = []
    for line in text.split("\n"):
        own = len(line) - len(line.lstrip())
        wrapped = textwrap.wrap(
            line,
            max(20, width),
            subsequent_indent=" " * min(own + indent, max(0, width - 20)),
            break_long_words=False,
            break_on_hyphens=False,
            replace_whitespace=False,
        )
        lines += wrapped if len(line) > width else [line]
    return "\n".join(lines)


def byte_size(size: float) -> str:
    """A number of bytes in kB, MB, GB or TB (powers of 1000)."""
    if size >= 1e12:
        return f"{size / 1e12:,.1f} TB"
    if size >= 1e9:
        return f"{size / 1e9:,.1f} GB"
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


def clock(seconds: float) -> str:
    """A time span as ``m:ss``, or ``h:mm:ss`` from one hour on."""
    seconds = round(seconds)
    return (
        f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"
        if seconds >= 3600
        else f"{seconds // 60}:{seconds % 60:02d}"
    )


def speed(rate: float, unit: str) -> str:
    """A rate per second, or per minute if it is below one per second.

    Args:
        rate: units per second.
        unit: plural name of what is counted, such as ``images``.
    """
    if rate < 1:
        return f"{rate * 60:.1f} {unit}/min"
    return f"{rate:.0f} {unit}/s" if rate >= 10 else f"{rate:.1f} {unit}/s"
