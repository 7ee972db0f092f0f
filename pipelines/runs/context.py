"""What a step is given besides its settings and inputs, and what it gives back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipelines.store.artifacts import Store


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a step made: its files (relative to its folder), and what to say about it."""

    files: list[str]
    metrics: dict[str, float] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Context:
    """The surroundings of one step; travels to worker processes."""

    node: str
    fingerprint: str
    store: Store
    folder: str
    """The step's own folder in the store; inputs are folders likewise."""

    cpus: int
    runtime: dict[str, Any]
    manifests: dict[str, Any]
    """Role → the manifest of the input."""

    board: Any
    """Ray actor that takes progress; None in tests."""

    def report(self, **row: Any) -> None:
        """Says how far the step is: ``done``, ``of``, ``unit`` and any metrics. Never waits."""
        if self.board is not None:
            self.board.report.remote(self.node, {"time_ms": int(time.time() * 1000), **row})

    def save_progress(self, done: int, of: int, unit: str) -> None:
        """Leaves word in the store of what a rerun need not do again."""
        self.store.write_json(
            f"{self.folder}/progress.json", {"done": done, "of": of, "unit": unit}
        )


Step = Callable[[Context, dict[str, Any], dict[str, str]], Result]


class Board:
    """Collects the steps' reports for the driver, and holds its word to stop; a Ray actor."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, dict[str, Any]]] = []
        self.reasons: dict[str, str] = {}
        """Why to leave, by node; ``""`` stands for all of them."""

    def report(self, node: str, row: dict[str, Any]) -> None:
        self.rows.append((node, row))

    def drain(self) -> list[tuple[str, dict[str, Any]]]:
        rows, self.rows = self.rows, []
        return rows

    def stop(self, reason: str, node: str = "") -> None:
        """Has the workers of a training node, or of all, save their state and leave."""
        self.reasons[node] = reason

    def stopping(self, node: str = "") -> str | None:
        return self.reasons.get("") or self.reasons.get(node)
