"""The runs in a store, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.formatting import align_columns, clock
from pipelines.reports.status import describe_state
from pipelines.runs.execution import UNFINISHED, Execution
from pipelines.store.artifacts import Store

DONE = ("done", "reused")


def data(store: Store, runs: Sequence[Execution]) -> list[dict[str, Any]]:
    """Each run's state, times in UTC and seconds, and how many of its nodes are done."""
    return [
        {
            "id": run.id,
            "pipeline": run.pipeline,
            "state": describe_state(store, run).partition(" (")[0],
            "started": run.started,
            "ended": run.ended,
            "seconds": run.seconds if run.ended and run.state not in UNFINISHED else None,
            "attempt": run.attempt,
            "nodes": len(run.nodes),
            "done": sum(record["state"] in DONE for record in run.nodes.values()),
        }
        for run in runs
    ]


def text(found: Sequence[dict[str, Any]]) -> str:
    """A table with a line for each run.

    Args:
        found: from :func:`data`.
    """
    head = ("run", "state", "started (UTC)", "took", "nodes done")
    rows = [
        (
            run["id"],
            run["state"],
            run["started"][:16].replace("T", " "),
            clock(run["seconds"]) if run["seconds"] is not None else "",
            f"{run['done']} of {run['nodes']}",
        )
        for run in found
    ]
    return "\n".join(align_columns([head, *rows], right=(3, 4)))
