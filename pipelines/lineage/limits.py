"""Fit texts and settings into what MLflow takes."""

from __future__ import annotations

from typing import Any

PARAMS, PARAM_CHARACTERS, TAG_CHARACTERS = 100, 6000, 5000
"""MLflow's limits a call, or below them."""


def flat(settings: dict[str, Any], at: str = "") -> dict[str, Any]:
    """Flatten nested settings: ``a.b`` → value."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{at}.{key}" if at else key
        out |= flat(value, name) if isinstance(value, dict) else {name: value}
    return out


def whole_lines(text: str, limit: int = TAG_CHARACTERS) -> str:
    """The longest beginning of a text in whole lines that a tag of MLflow holds."""
    if len(text) <= limit:
        return text
    return text[: text.rfind("\n", 0, limit + 1) + 1].rstrip("\n")
