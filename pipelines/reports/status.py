"""Status of a run: its driver, and each node's state, run time, progress and host."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from pipelines.formatting import clock, printable, speed
from pipelines.runs.execution import UNFINISHED, Execution
from pipelines.runs.lease import Holder, holder_of, is_driven
from pipelines.store.artifacts import Store

POLL_S = 2.0
PROGRESS_S = 30.0
RESUME_HINT = "the same `ediffi run` continues it"


def describe_state(store: Store, execution: Execution) -> str:
    """State of a run; for one that has not ended, also whether its driver is alive."""
    if execution.state == "interrupted":
        return f"interrupted ({RESUME_HINT})"
    if execution.state != "running":
        return execution.state
    holder = holder_of(store, execution.pipeline)
    if is_driven(store, execution.pipeline):
        return f"running ({holder})" if holder else "running"
    last = f", {holder}" if holder else ""
    return f"stopped (its driver is gone{last}; {RESUME_HINT})"


def data(store: Store, execution: Execution) -> dict[str, Any]:
    """The run's record and its driver, as JSON."""
    holder: Holder | None = holder_of(store, execution.pipeline)
    driver = None
    if holder:
        alive = is_driven(store, execution.pipeline)
        driver = {
            "host": holder.host,
            "process": holder.process,
            "attempt": holder.attempt,
            "silent_s": round(holder.age_s, 1),
            "alive": alive,
        }
    return {**execution.__dict__, "state": describe_state(store, execution), "driver": driver}


def text(state: str, execution: Execution, now: datetime | None = None) -> str:
    """The status for the terminal: one line for the run and one per node.

    Args:
        state: from :func:`describe_state`.
        now: the present time, in UTC.
    """
    now = now or datetime.now(UTC)
    attempt = f", attempt {execution.attempt}" if execution.attempt > 1 else ""
    lines = [f"{execution.id}{attempt}: {state}{run_time(execution)}"]
    width = max((len(node) for node in execution.nodes), default=0)
    for node, record in execution.nodes.items():
        lines.append(f"  {node:<{width}}  {node_line(record, now, execution.attempt)}".rstrip())
    lines = [printable(line) for line in lines]
    return "\n".join(lines)


def run_time(execution: Execution) -> str:
    """How long an ended run took, as ``" after 1:24"``; empty for others."""
    if not execution.ended or execution.state in UNFINISHED:
        return ""
    return f" after {clock(execution.seconds)}"


def node_line(record: dict[str, Any], now: datetime, attempt: int) -> str:
    """A node's state, run time, and progress, host or error."""
    state = record["state"]
    is_running = state == "running" and "since" in record
    seconds = seconds_since(record, now) if is_running else record.get("seconds")
    parts = [f"{state:<11} {clock(seconds) if seconds is not None else '':>8}"]
    if state == "running" and "done" in record:
        parts.append(progress(record, now))
    made_earlier = state == "reused" and record.get("attempt", attempt) < attempt
    if "by" in record and (made_earlier or state in ("done", "failed")):
        when = record["since"].replace("T", " ").partition("+")[0]
        parts.append(f"{when} UTC on {record['by']}, attempt {record['attempt']}")
    if "for" in record:
        parts.append(f"for pipeline {record['for']}, which is building it")
    if "error" in record:
        parts.append(record["error"])
    return "  ".join(parts)


def progress(record: dict[str, Any], now: datetime) -> str:
    """Work done, rate and time left: ``640 of 1,280 images, 13 images/s, 0:50 left``."""
    parts = [f"{record['done']:,} of {record['of']:,} {record['unit']}"]
    if rate := record.get("rate"):
        left = max(0.0, (record["of"] - record["done"]) / rate)
        parts += [speed(rate, record["unit"]), f"{clock(left)} left"]
    return ", ".join(parts)


def seconds_since(record: dict[str, Any], now: datetime) -> float:
    """Seconds since a node entered its state."""
    return max(0.0, (now - datetime.fromisoformat(record["since"])).total_seconds())


def follow(
    read: Callable[[], tuple[str, Execution]],
    sleep: Callable[[float], None] = time.sleep,
    clock_s: Callable[[], float] = time.monotonic,
) -> Iterator[str]:
    """Yield the status, then a line per change, until the run ends or its driver is gone.

    Running nodes also get a line every :data:`PROGRESS_S`.

    Args:
        read: returns the current state, from :func:`describe_state`, and the run's record.
        sleep: waits for a number of seconds.
        clock_s: a monotonic clock, in seconds.
    """
    state, execution = read()
    yield text(state, execution)
    reported = {node: record["state"] for node, record in execution.nodes.items()}
    last_progress = clock_s()
    while is_active(state, execution):
        sleep(POLL_S)
        state, execution = read()
        due = clock_s() - last_progress >= PROGRESS_S
        last_progress = clock_s() if due else last_progress
        now = datetime.now(UTC)
        for node, record in execution.nodes.items():
            if reported.get(node) != record["state"] or (due and record["state"] == "running"):
                reported[node] = record["state"]
                line = f"  {node}  {node_line(record, now, execution.attempt)}"
                yield printable(line.rstrip())
    yield f"{execution.id}: {state}{run_time(execution)}"


def is_active(state: str, execution: Execution) -> bool:
    """Whether a run has a driver at work."""
    return execution.state == "running" and not state.startswith("stopped")
