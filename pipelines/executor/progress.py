"""Pass the steps' progress reports on to the console, to MLflow and to the run's record."""

from __future__ import annotations

import os
import time
from typing import Any

from pipelines.executor.console import Console
from pipelines.lineage import Lineage
from pipelines.runs import meters
from pipelines.runs.execution import Execution, now
from pipelines.store.artifacts import Store


class Progress:
    """Handles the progress reports of a run's nodes, and adds the usage of the machine."""

    def __init__(
        self, store: Store, execution: Execution, lineage: Lineage, console: Console
    ) -> None:
        self.store, self.execution = store, execution
        self.lineage, self.console = lineage, console
        self.machine = meters.MachineMeter(store.root if store.is_local else None)
        self.machine_read_at = time.monotonic()
        self.first_reports: dict[str, tuple[float, int]] = {}
        """Node id → when it first reported progress, and its ``done`` at that time."""

    def restart(self, node: str) -> None:
        """Forget a node's earlier reports, as it starts again."""
        self.first_reports.pop(node, None)

    def handle(self, node: str, row: dict[str, Any]) -> None:
        """Handle a report; ``row`` as of :meth:`pipelines.runs.context.Context.report`."""
        state = self.execution.nodes[node]
        state.update(
            {k: row[k] for k in ("done", "of", "unit", "checkpoint", "picture") if k in row}
        )
        if "done" in row:
            self.record_rate(node, state, row)
        self.lineage.report(node, {"images": state.get("done", 0), **row})
        if "picture" in row:
            row = {**row, "picture": shortest_path(self.store.full(row["picture"]))}
        self.console.report(node, row)

    def record_rate(self, node: str, state: dict[str, Any], row: dict[str, Any]) -> None:
        """Record a node's speed and the time of its report, which `ediffi status` shows.

        Args:
            state: the node's part of the run's record; ``rate`` is in units per second.
            row: a report with ``done``.
        """
        moment = time.monotonic()
        since, first = self.first_reports.setdefault(node, (moment, row["done"]))
        rate = row.get("metrics", {}).get("images_per_s")
        if rate is None and row["done"] > first:
            rate = (row["done"] - first) / max(moment - since, 1e-6)
        if rate:
            state["rate"] = float(f"{rate:.4g}")
        state["heard"] = now()

    def report_machine(self) -> None:
        """Report this machine's usage for every running node, every 12 s.

        Does nothing on a cluster, whose nodes run on other machines.
        """
        moment = time.monotonic()
        due = moment - self.machine_read_at >= meters.REPORT_EVERY_S
        if os.environ.get("RAY_ADDRESS") or not due:
            return
        self.machine_read_at, numbers = moment, self.machine.read()
        for node, state in self.execution.nodes.items():
            if state["state"] == "running":
                self.handle(node, {"time_ms": int(time.time() * 1000), "metrics": numbers})


def shortest_path(path: str) -> str:
    """A path, relative to the working directory if that is shorter; a bucket's URL unchanged."""
    return path if "://" in path else min(path, os.path.relpath(path), key=len)
