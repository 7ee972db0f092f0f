"""Findings of the checks of a spec: errors and warnings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One mistake, or one setting that is probably not meant."""

    level: Literal["error", "warning"]
    """``error``: the run would fail or never end. ``warning``: it runs."""

    node: str
    """Id of the node, or name of the stage, that it concerns."""

    key: str
    """Dotted path of the setting in the spec."""

    text: str
    """What is wrong and what to write instead, in one line."""

    @property
    def is_error(self) -> bool:
        return self.level == "error"

    def __str__(self) -> str:
        return f"{self.level}: {self.node}: {self.text}"


Findings = Iterator[Finding]


def error(node: str, key: str, text: str) -> Finding:
    """A finding that keeps the pipeline from running."""
    return Finding(level="error", node=node, key=key, text=text)


def warning(node: str, key: str, text: str) -> Finding:
    """A finding that the user should know of."""
    return Finding(level="warning", node=node, key=key, text=text)
