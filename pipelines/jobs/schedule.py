"""Run a verb on a cron schedule: never twice at once, and once for all ticks that were missed.

The last tick is recorded in the store, so a scheduler that was down knows what it missed. The loop
reads the clock instead of counting seconds, so suspended machines and changed clocks do no harm.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from pipelines.executor.stopping import Stop
from pipelines.formatting import clock
from pipelines.jobs import child
from pipelines.jobs.cron import CronTimes
from pipelines.jobs.schedule_state import Schedule, ScheduleState, iso_utc, log_folder
from pipelines.store.artifacts import Store

VERBS = ("retrain", "run")

POLL_S = 1.0
MISSED_AFTER = timedelta(minutes=1)
"""A tick this late counts as missed."""

SET_BACK = timedelta(hours=3)
"""A clock that is set back by up to this repeats nothing, as with cron. One that is set back
by more was wrong before, and times are counted from what it shows now."""

MISSED_NOTED = 100
"""Missed ticks of one gap that the calendar lists."""

SKIPPED_PREFIX = "skipped: "
"""Prefix of the last line of a verb that found nothing to do."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of a tick."""

    state: Literal["done", "skipped", "failed", "interrupted"]
    message: str = ""
    """Why it was skipped or failed."""

    code: int = 0
    """Exit code."""


Tick = Callable[[datetime], Outcome]
"""Does the work of the tick that starts at a time."""


def run_schedule(
    schedule: Schedule,
    state: ScheduleState,
    tick: Tick,
    log: Callable[[str], None],
    stop: Stop,
    *,
    times: CronTimes,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Run every tick until a signal asks to stop.

    Args:
        state: the schedule's record in the store.
        tick: does the work; see :func:`run_verb`.
        log: prints a line for the user.
        stop: holds the signal, once there is one.
        times: of the schedule's cron line.
        now: reads the clock.
        sleep: waits for a number of seconds.
    """
    checked, resume = state.checked_until, state.unfinished
    state.save(checked)
    while not stop.signal:
        at = now()
        if checked - at > SET_BACK:
            log(
                f"the clock was ahead, at {schedule.format_time(checked)}; it is "
                f"{schedule.format_time(at)} now, and times are counted from here"
            )
            checked = at
            state.save(checked)
        due = times.after(checked)
        if not resume and due > at:
            sleep(min(POLL_S, (due - at).total_seconds()))
            continue
        if resume:
            log("continues the last run, which was not finished")
        elif at - due > MISSED_AFTER:
            log(f"the run due at {schedule.format_time(due)} was missed; it starts now")
            note_missed(state, times, due, at)
        checked, resume = max(checked, at), False
        run_tick(schedule, state, tick, log, at)
        if stop.signal:
            return
        at, passed = now(), times.after(checked)
        if passed <= at:
            log(
                f"skipped the run due at {schedule.format_time(passed)}: the last was still running"
            )
            state.note(passed, "skipped", "the last run was still running")
            checked = at
            state.save(checked)
        log(f"next run: {schedule.format_time(times.after(checked))}")


def note_missed(state: ScheduleState, times: CronTimes, due: datetime, at: datetime) -> None:
    """Add the ticks from ``due`` to ``at`` to the calendar, for which one run makes up."""
    said = f"no scheduler was running; made up for at {iso_utc(at)}"
    for _ in range(MISSED_NOTED):
        if due > at:
            return
        state.note(due, "missed", said)
        due = times.after(due)


def run_tick(
    schedule: Schedule, state: ScheduleState, tick: Tick, log: Callable[[str], None], at: datetime
) -> Outcome:
    """Run one tick, log its outcome and record it in the store."""
    began, checked = time.monotonic(), max(at, state.checked_until)
    state.save(checked, started=iso_utc(at), state="running", said="", took_s=0)
    outcome = tick(at)
    took = time.monotonic() - began
    text = {
        "done": f"done in {clock(took)}",
        "skipped": f"skipped: {outcome.message}",
        "failed": f"failed after {clock(took)}: {outcome.message}",
        "interrupted": f"interrupted after {clock(took)}; the next run continues from there",
    }
    log(text[outcome.state])
    state.note(at, outcome.state, outcome.message, took_s=round(took, 1))
    state.save(checked, state=outcome.state, said=outcome.message, took_s=round(took, 1))
    return outcome


def run_verb(
    schedule: Schedule,
    store: Store,
    skip_reason: Callable[[], str],
    log: Callable[[str], None],
    stop: Stop,
    at: datetime,
    command: Sequence[str] = (),
    grace_s: float = child.GRACE_S,
) -> Outcome:
    """Run the verb in a process of its own, unless there is nothing to do.

    Args:
        skip_reason: returns why there is nothing to do; empty if there is something.
        log: prints a line for the user.
        stop: its signal is passed on to the process.
        at: start time, which names the file of its output.
        command: a command to run instead of the verb, for tests.
        grace_s: seconds that the process may take to end when it is told to stop.
    """
    try:
        if why := skip_reason():
            return Outcome(state="skipped", message=why)
        output = log_folder(store, schedule.pipeline) / f"{at:%Y%m%d-%H%M%S}.log"
        log(f"started; output in {output}")
        code = child.run(command or schedule.command(store.root), output, stop, grace_s)
        lines = child.last_lines(output, 20) or ["it printed nothing"]
    except (ValueError, OSError) as error:  # in spec, data or disk; the next tick may succeed
        return Outcome(state="failed", message=" ".join(str(error).split()), code=2)
    if code == 0:
        skipped = [line for line in lines if line.startswith(SKIPPED_PREFIX)]
        if not skipped:
            return Outcome(state="done")
        output.unlink()
        return Outcome(state="skipped", message=skipped[-1].removeprefix(SKIPPED_PREFIX))
    if stop.signal:
        return Outcome(state="interrupted", code=code)
    killed = f"killed by {signal.Signals(-code).name}; " if code < 0 else ""
    return Outcome(
        state="failed", message=killed + lines[-1], code=code if code > 0 else 128 - code
    )
