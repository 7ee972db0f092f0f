"""Figures of a plan as people read them."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def number(value: float) -> str:
    """With a decimal or two where it is small."""
    if value >= 100 or not value:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def rows_of(cells: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Lines of aligned columns; those that are empty throughout are left out.

    Args:
        right: columns that end, rather than begin, at the same place.
    """
    widths = [max(map(len, column)) for column in zip(*cells)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
            if width
        ).rstrip()
        for row in cells
    ]


def gigabytes(size: float) -> str:
    """Bytes as a number that can be read: kB to TB."""
    if size >= 1e12:
        return f"{size / 1e12:,.1f} TB"
    if size >= 1e9:
        return f"{size / 1e9:,.1f} GB"
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


def clock(seconds: float) -> str:
    seconds = round(seconds)
    return (
        f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"
        if seconds >= 3600
        else f"{seconds // 60}:{seconds % 60:02d}"
    )


def speed(rate: float, unit: str) -> str:
    """As a number that says something: a slow unit is counted by the minute."""
    if rate < 1:
        return f"{rate * 60:.1f} {unit}/min"
    return f"{rate:.0f} {unit}/s" if rate >= 10 else f"{rate:.1f} {unit}/s"
