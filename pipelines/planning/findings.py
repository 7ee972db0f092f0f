"""What a check of a pipeline finds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Finding:
    level: Literal["error", "warning"]
    node: str
    """Or the stage, of all its nodes."""

    key: str
    """Of the spec."""

    text: str

    @property
    def is_error(self) -> bool:
        return self.level == "error"

    def __str__(self) -> str:
        return f"{self.level}: {self.node}: {self.text}"


Found = Iterator[Finding]


def error(node: str, key: str, text: str) -> Finding:
    return Finding(level="error", node=node, key=key, text=text)


def warning(node: str, key: str, text: str) -> Finding:
    return Finding(level="warning", node=node, key=key, text=text)
