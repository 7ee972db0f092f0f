"""How a run stands, in words: its driver, and each node's state, time, progress and maker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from pipelines.formatting import clock, speed
from pipelines.runs.execution import UNFINISHED, Execution
from pipelines.runs.lease import Holder, holder_of, is_driven
from pipelines.store.artifacts import Store

POLL_S = 2.0
PROGRESS_S = 30.0
RESUME_HINT = "the same `ediffi run` continues it"


def describe_state(store: Store, execution: Execution) -> str:
    """The run's state, and if it is not at its end whether somebody is at work on it."""
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
    """For programs: the record, and who drives it."""
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
    now = now or datetime.now(UTC)
    again = f", attempt {execution.attempt}" if execution.attempt > 1 else ""
    lines = [f"{execution.id}{again}: {state}{took(execution)}"]
    width = max((len(node) for node in execution.nodes), default=0)
    for node, record in execution.nodes.items():
        lines.append(f"  {node:<{width}}  {node_line(record, now, execution.attempt)}".rstrip())
    return "\n".join(lines)


def took(execution: Execution) -> str:
    if not execution.ended or execution.state in UNFINISHED:
        return ""
    return f" after {clock(execution.seconds)}"


def node_line(record: dict[str, Any], now: datetime, attempt: int) -> str:
    """State, time, and what there is to say of it; by whom, if this run made it."""
    state = record["state"]
    at_work = state == "running" and "since" in record
    seconds = since(record, now) if at_work else record.get("seconds")
    parts = [f"{state:<11} {clock(seconds) if seconds is not None else '':>8}"]
    if state == "running" and "done" in record:
        parts.append(progress(record, now))
    earlier = state == "reused" and record.get("attempt", attempt) < attempt
    if "by" in record and (earlier or state in ("done", "failed")):
        when = record["since"].replace("T", " ").partition("+")[0]
        parts.append(f"{when} UTC on {record['by']}, attempt {record['attempt']}")
    if "for" in record:
        parts.append(f"pipeline {record['for']} is making it")
    if "error" in record:
        parts.append(record["error"])
    return "  ".join(parts)


def progress(record: dict[str, Any], now: datetime) -> str:
    parts = [f"{record['done']:,} of {record['of']:,} {record['unit']}"]
    if rate := record.get("rate"):
        left = max(0.0, (record["of"] - record["done"]) / rate)
        parts += [speed(rate, record["unit"]), f"{clock(left)} left"]
    return ", ".join(parts)


def since(record: dict[str, Any], now: datetime) -> float:
    return max(0.0, (now - datetime.fromisoformat(record["since"])).total_seconds())


def follow(
    look: Callable[[], tuple[str, Execution]],
    sleep: Callable[[float], None] = time.sleep,
    clock_s: Callable[[], float] = time.monotonic,
) -> Iterator[str]:
    """What changes, line by line, until the run has ended or its driver is gone."""
    state, execution = look()
    yield text(state, execution)
    told = {node: record["state"] for node, record in execution.nodes.items()}
    spoke = clock_s()
    while is_at_work(state, execution):
        sleep(POLL_S)
        state, execution = look()
        due = clock_s() - spoke >= PROGRESS_S
        spoke = clock_s() if due else spoke
        now = datetime.now(UTC)
        for node, record in execution.nodes.items():
            if told.get(node) != record["state"] or (due and record["state"] == "running"):
                told[node] = record["state"]
                yield f"  {node}  {node_line(record, now, execution.attempt)}".rstrip()
    yield f"{execution.id}: {state}{took(execution)}"


def is_at_work(state: str, execution: Execution) -> bool:
    return execution.state == "running" and not state.startswith("stopped")
