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

        self.working_since: dict[str, float] = {}
        """Node id → since when its workers have been at work, of those that are."""

        self.worked_before_s: dict[str, float] = {}
        """Node id → seconds that its earlier workers were at work."""

    def restart(self, node: str) -> None:
        """Forget a node's earlier reports, as it starts again."""
        for of in (self.first_reports, self.working_since, self.worked_before_s):
            of.pop(node, None)

    def worked_s(self, node: str) -> float:
        """Seconds that a training's workers have been at work since it started, without waiting
        for machines, before and between them."""
        since = self.working_since.get(node)
        now_s = time.monotonic() - since if since is not None else 0.0
        return self.worked_before_s.get(node, 0.0) + now_s

    def handle(self, node: str, row: dict[str, Any]) -> None:
        """Handle a report; ``row`` as of :meth:`pipelines.runs.context.Context.report`."""
        if row.get("at_work", "done" in row):
            self.working_since.setdefault(node, time.monotonic())
        elif "at_work" in row:
            self.worked_before_s[node] = self.worked_s(node)
            self.working_since.pop(node, None)
        state = self.execution.nodes[node]
        self.execution.touch(node)
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
