"""Watch a run while it lasts: its remaining time, and its numbers for Prometheus."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pipelines.dag.plan import Plan, Verdict
from pipelines.planning.remaining import Durations, durations_in, estimate
from pipelines.runs.execution import Execution
from pipelines.runs.lease import Lease
from pipelines.runs.ray_meters import Metric, RayMeters
from pipelines.store.artifacts import Store

EVERY_S = 10.0
"""How often the numbers are brought up to date. Ray collects them as often, and drops a gauge that
was not set in between."""

SHARE_OF_TIME = 0.01
"""The estimate of a plan of very many nodes is made less often, to take no more time than this."""

METRICS: dict[str, Metric] = {
    "ediffi_run_nodes": Metric(
        kind="gauge",
        about="Nodes by state: waiting, running, done, reused, failed, skipped and others",
        labels=("pipeline", "state"),
    ),
    "ediffi_run_node_progress": Metric(
        kind="gauge", about="Share of a node's work that is done", labels=("pipeline", "node")
    ),
    "ediffi_run_node_rate": Metric(
        kind="gauge",
        about="Speed of a running node, in units a second: images, pictures, shards",
        labels=("pipeline", "node", "unit"),
    ),
    "ediffi_run_failures": Metric(
        kind="counter", about="Nodes that failed, by kind", labels=("pipeline", "kind")
    ),
    "ediffi_run_left_seconds": Metric(
        kind="gauge",
        about="Estimate of the run's remaining time, without nodes that were never timed before",
        labels=("pipeline",),
    ),
    "ediffi_run_lease_renewed_timestamp_seconds": Metric(
        kind="gauge",
        about="When the driver last renewed its lease, in seconds since 1970",
        labels=("pipeline",),
    ),
}
"""Name → metric."""


class Outlook:
    """Keeps a run's estimate and its metrics up to date."""

    def __init__(self, store: Store, plan: Plan, execution: Execution, lease: Lease) -> None:
        self.store, self.execution, self.lease = store, execution, lease
        self.durations: Durations = durations_in(store, plan)
        self.meters = RayMeters(METRICS)
        self.due_at = self.estimate_due_at = 0.0
        self.states: set[str] = set()
        self.rates: set[tuple[str, str]] = set()

    def finished(self, verdict: Verdict, manifest: Mapping[str, Any]) -> None:
        """Learn from a node that has finished."""
        self.durations.add(verdict.node, manifest)

    def failed(self, verdict: Verdict) -> None:
        """Count a node that has failed."""
        self.meters.add(
            "ediffi_run_failures", pipeline=self.execution.pipeline, kind=verdict.node.kind
        )

    def refresh(self, plan: Plan) -> None:
        """Bring the estimate and the metrics up to date, if they are due."""
        began = time.monotonic()
        if began < self.due_at:
            return
        self.due_at = began + EVERY_S
        if began >= self.estimate_due_at:
            now = datetime.now(UTC)
            left = estimate(plan, self.execution.nodes, self.durations, now)
            self.execution.left = {**left, "at": now.isoformat(timespec="seconds")}
            self.estimate_due_at = began + (time.monotonic() - began) / SHARE_OF_TIME
        self._export()

    def _export(self) -> None:
        of = {"pipeline": self.execution.pipeline}
        nodes = self.execution.nodes
        counts = Counter(record["state"] for record in nodes.values())
        self.states |= set(counts)
        for state in self.states:
            self.meters.set("ediffi_run_nodes", counts[state], **of, state=state)
        for node, record in nodes.items():
            if record.get("of"):
                share = record["done"] / record["of"]
                self.meters.set("ediffi_run_node_progress", share, **of, node=node)
        rates = {
            (node, record["unit"]): record["rate"]
            for node, record in nodes.items()
            if record["state"] == "running" and "rate" in record
        }
        self.rates |= set(rates)
        for node, unit in self.rates:  # an ended one's speed is 0, else its last would stay
            value = rates.get((node, unit), 0.0)
            self.meters.set("ediffi_run_node_rate", value, **of, node=node, unit=unit)
        self.meters.set("ediffi_run_left_seconds", self.execution.left["seconds"], **of)
        beat = self.lease.holder.beat
        self.meters.set("ediffi_run_lease_renewed_timestamp_seconds", beat, **of)
