"""Status of a run: its driver, and each node's state, run time, progress and host."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any

from pipelines.formatting import clock, fitted, printable, speed
from pipelines.reports.live import LiveLines
from pipelines.runs.execution import UNFINISHED, Execution
from pipelines.runs.lease import Holder, holder_of, is_driven
from pipelines.store.artifacts import Store

POLL_S = 2.0
SUMMARY_S = 60.0
NAMED = 3
"""How many running nodes a summary names."""

INDENT = 4
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
    record = {k: v for k, v in execution.record().items() if k != "parts"}
    return {**record, "state": describe_state(store, execution), "driver": driver}


def text(
    state: str,
    execution: Execution,
    now: datetime | None = None,
    width: int | None = None,
    states: Collection[str] | None = None,
) -> str:
    """The status for the terminal: the run, its summary, and the nodes.

    Args:
        state: from :func:`describe_state`.
        now: the present time, in UTC.
        width: characters of a line; None for one line per node, of any length.
        states: those of the nodes to list; None for all.
    """
    now = now or datetime.now(UTC)
    attempt = f", attempt {execution.attempt}" if execution.attempt > 1 else ""
    lines = [fitted([f"{execution.id}{attempt}: {state}{run_time(execution)}"], width, INDENT)]
    if execution.nodes:
        timed = is_active(state, execution)
        parts = summary_parts(execution, now, named=0, timed=timed)
        lines.append(fitted([f"  {'; '.join(parts)}"], width, INDENT))
    listed = {n: r for n, r in execution.nodes.items() if states is None or r["state"] in states}
    longest = max(map(len, listed), default=0)
    for node, record in listed.items():
        parts = [f"  {node:<{longest}}", *node_parts(record, now, execution.attempt)]
        lines.append(fitted(parts, width, INDENT).rstrip())
    return "\n".join(lines)


def summary(execution: Execution, now: datetime | None = None) -> str:
    """A running run in one line: nodes done, nodes at work, and the time left."""
    return printable("; ".join(summary_parts(execution, now or datetime.now(UTC))))


def summary_parts(
    execution: Execution, now: datetime, named: int = NAMED, timed: bool = True
) -> list[str]:
    """What :func:`summary` joins.

    Args:
        named: How many running nodes to name.
        timed: Add the time left.
    """
    nodes = execution.nodes
    counts = Counter(record["state"] for record in nodes.values())
    parts = [f"{counts['done'] + counts['reused']} of {len(nodes)} nodes done"]
    parts += [f"{counts[s]} {s}" for s in ("failed", "skipped", "interrupted") if counts[s]]
    running = [node for node, record in nodes.items() if record["state"] == "running"]
    parts += [f"{node} {briefly(nodes[node], now)}".rstrip() for node in running[:named]]
    if others := running[named:]:
        parts.append(f"{len(others)} more run" if named else f"{len(others)} running")
    if timed and (left := execution.left):
        passed = (now - datetime.fromisoformat(left["at"])).total_seconds()
        seconds = max(0.0, left["seconds"] - passed)
        if untimed := len(left["unknown"]):
            nodes_left = f"{untimed} node{'s' if untimed > 1 else ''} never timed before"
            parts.append(
                f"about {clock(seconds)} left, not counting {nodes_left}" if seconds else nodes_left
            )
        else:
            parts.append(f"{'at least' if left['grows'] else 'about'} {clock(seconds)} left")
    return parts


def briefly(record: dict[str, Any], now: datetime) -> str:
    """A running node's progress in few words: ``45 %, 13 images/s``, or its run time."""
    if not record.get("of"):
        return clock(seconds_since(record, now)) if "since" in record else ""
    share = f"{100 * record['done'] / record['of']:.0f} %"
    rate = record.get("rate")
    return f"{share}, {speed(rate, record['unit'])}" if rate else share


def run_time(execution: Execution) -> str:
    """How long an ended run took, as ``" after 1:24"``; empty for others."""
    if not execution.ended or execution.state in UNFINISHED:
        return ""
    return f" after {clock(execution.seconds)}"


def node_parts(record: dict[str, Any], now: datetime, attempt: int) -> list[str]:
    """A node's state and run time, then its progress, host or error."""
    state = record["state"]
    is_running = state == "running" and "since" in record
    seconds = seconds_since(record, now) if is_running else record.get("seconds")
    parts = [f"{state:<11} {clock(seconds) if seconds is not None else '':>8}"]
    if state == "running" and "done" in record:
        parts.append(progress(record))
    made_earlier = state == "reused" and record.get("attempt", attempt) < attempt
    if "by" in record and (made_earlier or state in ("done", "failed")):
        when = record["since"].replace("T", " ").partition("+")[0]
        parts.append(f"{when} UTC on {record['by']}, attempt {record['attempt']}")
    if "for" in record:
        parts.append(f"for pipeline {record['for']}, which is building it")
    if "error" in record:
        parts.append(record["error"])
    return parts


def progress(record: dict[str, Any]) -> str:
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
    lines: LiveLines,
    sleep: Callable[[float], None] = time.sleep,
    clock_s: Callable[[], float] = time.monotonic,
) -> None:
    """Print the status, then a line per change, until the run ends or its driver is gone.

    In between, a terminal shows the nodes at work, and a log file gets a summary a minute.

    Args:
        read: returns the current state, from :func:`describe_state`, and the run's record.
        lines: prints.
        sleep: waits for a number of seconds.
        clock_s: a monotonic clock, in seconds.
    """
    state, execution = read()
    lines.print(text(state, execution, width=lines.width))
    reported = {node: record["state"] for node, record in execution.nodes.items()}
    summed_up = clock_s()
    while is_active(state, execution):
        lines.show(text(state, execution, width=lines.width, states=["running"]))
        sleep(POLL_S)
        state, execution = read()
        now = datetime.now(UTC)
        for node, record in execution.nodes.items():
            if reported.get(node) != record["state"]:
                reported[node] = record["state"]
                parts = [f"  {node}", *node_parts(record, now, execution.attempt)]
                lines.print(fitted(parts, lines.width, INDENT).rstrip())
        if lines.width is None and clock_s() - summed_up >= SUMMARY_S:
            summed_up = clock_s()
            lines.print(f"  {summary(execution, now)}")
    lines.show("")
    lines.print(printable(f"{execution.id}: {state}{run_time(execution)}"))


def is_active(state: str, execution: Execution) -> bool:
    """Whether a run has a driver at work."""
    return execution.state == "running" and not state.startswith("stopped")
