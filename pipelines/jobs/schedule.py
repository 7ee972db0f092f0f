"""A verb at the times of a cron line: never twice at once, and what was missed once.

When it was last is kept in the store, so a scheduler that was down knows what it missed. Machines
that sleep and clocks that are set are met by looking at the clock, not by counting seconds.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pipelines.executor.stopping import Stop
from pipelines.formatting import clock
from pipelines.jobs import child
from pipelines.jobs.schedule_state import Kept, Schedule, logs_of, text
from pipelines.store.artifacts import Store

VERBS = ("retrain", "run")

LOOK_S = 1.0
LATE = timedelta(minutes=1)
"""From then on a tick is called missed."""

SKIPPED = "skipped: "
"""How a verb's last line begins that found nothing to do."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a tick."""

    state: Literal["done", "skipped", "failed", "interrupted"]
    said: str = ""
    code: int = 0


Tick = Callable[[datetime], Outcome]


def keep(
    schedule: Schedule,
    kept: Kept,
    tick: Tick,
    say: Callable[[str], None],
    stop: Stop,
    *,
    times: Any,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Sees to every tick until it is told to stop.

    Args:
        times: a trigger of APScheduler's; :func:`pipelines.jobs.cron.times`.
    """

    def after(moment: datetime) -> datetime:
        due: datetime = times.get_next_fire_time(moment, moment)
        return due

    seen, again = kept.seen, kept.unfinished
    kept.save(seen)
    while not stop.signal:
        at, due = now(), after(seen)
        if not again and due > at:
            sleep(min(LOOK_S, (due - at).total_seconds()))
            continue
        if again:
            say("goes on with the last, which was not finished")
        elif at - due > LATE:
            say(f"{schedule.at(due)} was missed, and is caught up")
        seen, again = at, False
        once(schedule, kept, tick, say, at)
        if stop.signal:
            return
        at, passed = now(), after(seen)
        if passed <= at:
            say(f"skipped {schedule.at(passed)}: the one before was at work until now")
            seen = at
            kept.save(seen)
        say(f"next {schedule.at(after(seen))}")


def once(
    schedule: Schedule, kept: Kept, tick: Tick, say: Callable[[str], None], at: datetime
) -> Outcome:
    """One tick, told and kept."""
    began = time.monotonic()
    kept.save(at, started=text(at), state="running", said="", took_s=0)
    outcome = tick(at)
    took = time.monotonic() - began
    said = {
        "done": f"done in {clock(took)}",
        "skipped": f"skipped: {outcome.said}",
        "failed": f"failed after {clock(took)}: {outcome.said}",
        "interrupted": f"interrupted after {clock(took)}; the next goes on from there",
    }
    say(said[outcome.state])
    kept.save(at, state=outcome.state, said=outcome.said, took_s=round(took, 1))
    return outcome


def perform(
    schedule: Schedule,
    store: Store,
    idle: Callable[[], str],
    say: Callable[[str], None],
    stop: Stop,
    at: datetime,
    command: Sequence[str] = (),
) -> Outcome:
    """Runs the verb, unless there is no need.

    Args:
        idle: says why there is none; nothing if there is.
        command: in place of the verb's.
    """
    try:
        if why := idle():
            return Outcome(state="skipped", said=why)
        log = logs_of(store, schedule.pipeline) / f"{at:%Y%m%d-%H%M%S}.log"
        say(f"started; its output: {log}")
        code = child.run(command or schedule.command(store.root), log, stop)
        lines = child.last_lines(log, 20) or ["it printed nothing"]
    except (ValueError, OSError) as error:  # of the spec, the data or the disk: later perhaps not
        return Outcome(state="failed", said=" ".join(str(error).split()), code=2)
    if code == 0:
        reasons = [line.removeprefix(SKIPPED) for line in lines if line.startswith(SKIPPED)]
        if not reasons:
            return Outcome(state="done")
        log.unlink()
        return Outcome(state="skipped", said=reasons[-1])
    if stop.signal:
        return Outcome(state="interrupted", code=code)
    killed = f"killed by {signal.Signals(-code).name}; " if code < 0 else ""
    return Outcome(state="failed", said=killed + lines[-1], code=code if code > 0 else 128 - code)
