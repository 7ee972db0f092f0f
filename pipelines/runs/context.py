"""The interface of a step: the context it gets, and the result it returns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipelines.store.artifacts import Store


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a step returns."""

    files: list[str]
    """The files it wrote, relative to its folder."""

    metrics: dict[str, float] = field(default_factory=dict)
    """Metric → value; recorded in MLflow."""

    info: dict[str, Any] = field(default_factory=dict)
    """Further JSON-ready facts for the manifest."""

    scratch: list[str] = field(default_factory=list)
    """Folders of interim results, relative to its folder: removed once the node is committed, and
    not before, so that a kill in between costs nothing."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a step needs besides its settings and inputs; pickled to worker processes."""

    node: str
    """Id of the node."""

    fingerprint: str
    store: Store
    folder: str
    """The step's own folder in the store. Its inputs are folders too."""

    cpus: int
    """CPUs of all the node's processes together."""

    runtime: dict[str, Any]
    """The node's settings that do not change the result."""

    manifests: dict[str, Any]
    """Role → manifest of the input."""

    board: Any
    """Handle of the :class:`ProgressBoard` actor; None to report nothing."""

    def report(self, **row: Any) -> None:
        """Report progress to the driver, without waiting.

        Args:
            row: any of ``done``, ``of`` and ``unit`` (64, 640, ``images``), ``rows``, ``bytes``,
                ``loss``, ``metrics``, ``images`` (their step in MLflow), ``checkpoint`` (images at
                the last one), ``picture`` (its path in the store), ``message`` and ``at_work``
                (whether a training's workers are, and do not wait for machines).
        """
        if self.board is not None:
            self.board.report.remote(self.node, {"time_ms": int(time.time() * 1000), **row})

    def save_progress(self, done: int, of: int, unit: str) -> None:
        """Record in the store how much is saved and need not be redone; the next plan shows it."""
        self.store.write_json(
            f"{self.folder}/progress.json", {"done": done, "of": of, "unit": unit}
        )


Step = Callable[[Context, dict[str, Any], dict[str, str]], Result]
"""Context, settings, and role → folder of the input; the signature of every step."""


class ProgressBoard:
    """Ray actor between driver and steps: collects progress reports, and holds stop requests."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, dict[str, Any]]] = []
        self.stop_reasons: dict[str, str] = {}
        """Node id → why it has to stop; the key ``""`` stands for all nodes."""

    def report(self, node: str, row: dict[str, Any]) -> None:
        """Add a progress report of a node; ``row`` as of :meth:`Context.report`."""
        self.rows.append((node, row))

    def drain(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the reports since the last call, as (node id, row)."""
        rows, self.rows = self.rows, []
        return rows

    def stop(self, reason: str, node: str = "") -> None:
        """Ask the workers of a train node, or of all, to save their state and exit."""
        self.stop_reasons[node] = reason

    def stop_reason(self, node: str = "") -> str | None:
        """Why a node has to stop; None to go on."""
        return self.stop_reasons.get("") or self.stop_reasons.get(node)
