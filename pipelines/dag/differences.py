"""Describe how two settings differ."""

from __future__ import annotations

from typing import Any

from pipelines.spec.base import names_in_specs
from pipelines.spec.pipeline import Spec

NAMES = names_in_specs(Spec)

SHOWN = 40  # characters of a value


def difference(old: Any, new: Any, at: str = "") -> list[str]:
    """List every leaf that differs between two nested values.

    Args:
        at: dotted key of these values within the whole; empty at the top.

    Returns:
        One ``key: old → new`` for each difference, sorted by key.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        out: list[str] = []
        for key in sorted({*old, *new}):
            shown = NAMES.get(key, key)
            name = f"{at}.{shown}" if at else str(shown)
            if key in old and key in new:
                out += difference(old[key], new[key], name)
            elif old.get(key) != new.get(key):
                was, now = (short(of[key]) if key in of else "unset" for of in (old, new))
                out.append(f"{name}: {was} → {now}")
        return out
    return [] if old == new else [f"{at}: {short(old)} → {short(new)}"]


def settings_count(old: Any, new: Any) -> int:
    """Number of leaves that two nested values have together, as :func:`difference` counts them."""
    if isinstance(old, dict) and isinstance(new, dict):
        return sum(
            settings_count(old[key], new[key]) if key in old and key in new else 1
            for key in {*old, *new}
        )
    return 1


def short(value: Any) -> str:
    """The value as text, cut to 40 characters."""
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
