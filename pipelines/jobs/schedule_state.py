"""Schedules in the store: what runs when, the last run, and which process schedules it.

A scheduler that was down finds out from this record what it missed.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.jobs import cron
from pipelines.lineage.address import local_folder
from pipelines.store import lock
from pipelines.store.artifacts import Store

FOLDER = "schedules"

CALENDAR_LENGTH = 500
"""Events that a schedule's calendar keeps; older ones are dropped."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What runs when."""

    pipeline: str
    """Name of the pipeline."""

    spec: str
    """Path of its spec."""

    verb: str
    """The command: ``run`` or ``retrain``."""

    arguments: tuple[str, ...] = ()
    """Further arguments of the command."""

    cron: str
    """Minute, hour, day, month, weekday."""

    timezone: str
    """Name of the time zone, such as ``Europe/Berlin``."""

    def format_time(self, when: datetime, seconds: bool = False) -> str:
        """A time in the schedule's time zone."""
        form = "%Y-%m-%d %H:%M:%S %Z" if seconds else "%Y-%m-%d %H:%M %Z"
        return when.astimezone(cron.parse_timezone(self.timezone)).strftime(form)

    def command(self, storage: str) -> list[str]:
        """The command line that runs the verb on a store."""
        verb = [self.verb, self.spec, "--storage", storage, *self.arguments]
        return [sys.executable, "-m", "pipelines.cli", *verb]


class ScheduleState:
    """A schedule's file in the store: the schedule, until when its ticks are done, its last run,
    and a calendar of what ran, was skipped or was missed."""

    def __init__(
        self, store: Store, schedule: Schedule, now: datetime, log: Callable[[str], None]
    ) -> None:
        self.store, self.path, self.log = store, f"{FOLDER}/{schedule.pipeline}.json", log
        self.content: dict[str, Any] = {
            "schedule": {**asdict(schedule), "arguments": list(schedule.arguments)},
            "seen": iso_utc(now),
            "last": {},
            "calendar": [],
        }
        before = store.read_json(self.path)
        if before:
            self.content["last"] = before["last"]
            self.content["calendar"] = before.get("calendar", [])  # files of 0.2.0 have none
            when = {k: before["schedule"][k] for k in ("cron", "timezone")}
            if when == {"cron": schedule.cron, "timezone": schedule.timezone}:
                self.content["seen"] = before["seen"]

    @property
    def checked_until(self) -> datetime:
        """Ticks up to this time have been run or skipped."""
        return datetime.fromisoformat(self.content["seen"])

    @property
    def unfinished(self) -> bool:
        """Whether the last run was interrupted, or its scheduler killed."""
        return self.content["last"].get("state") in ("running", "interrupted")

    def note(self, due: datetime, state: str, said: str = "", **more: Any) -> None:
        """Add an event to the calendar; :meth:`save` writes it.

        Args:
            due: when it was due, or began if it was not scheduled.
            state: ``done``, ``skipped``, ``failed``, ``interrupted`` or ``missed``.
            said: why.
            more: further facts, such as ``took_s``.
        """
        event = {"due": iso_utc(due), "state": state, "said": said, **more}
        self.content["calendar"] = [*self.content["calendar"], event][-CALENDAR_LENGTH:]

    def save(self, checked_until: datetime, **last: Any) -> None:
        """Write the file.

        Args:
            last: changes to the record of the last run.
        """
        self.content["seen"] = iso_utc(checked_until)
        self.content["last"].update(last)
        try:
            self.store.write_json(self.path, self.content)
        except OSError as error:  # the scheduler must go on; the next try may succeed
            self.log(f"{self.store.full(self.path)} cannot be written: {error}")


def iso_utc(when: datetime) -> str:
    """A time in ISO 8601, in UTC, to the second."""
    return when.astimezone(UTC).isoformat(timespec="seconds")


def log_folder(store: Store, pipeline: str) -> Path:
    """Folder on this machine for the output of a schedule's runs."""
    return local_folder(store) / FOLDER / pipeline


@contextlib.contextmanager
def scheduler_lock(store: Store, pipeline: str) -> Iterator[None]:
    """Make this process the only scheduler of a pipeline on this machine.

    Raises:
        ValueError: Another process is.
    """
    path = lock_path(store, pipeline)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(lock.held(path))
        except BlockingIOError:
            raise ValueError(
                f"pipeline {pipeline} has a scheduler already (process "
                f"{path.read_text().strip()}); stop that one first"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def lock_path(store: Store, pipeline: str) -> Path:
    """File that a pipeline's scheduler locks; it holds the process id."""
    return local_folder(store) / FOLDER / f".{pipeline}.lock"


def has_scheduler(store: Store, pipeline: str) -> bool:
    """Whether a process on this machine schedules a pipeline."""
    return lock.is_held(lock_path(store, pipeline))


def list_schedules(store: Store, now: datetime) -> list[dict[str, Any]]:
    """All schedules of a store as JSON, with the last run, the next time and the calendar."""
    rows = []
    for name in store.files(FOLDER):
        if "/" in name or not name.endswith(".json"):
            continue
        found = store.read_json(f"{FOLDER}/{name}")
        schedule = Schedule(**found["schedule"])
        due = cron.cron_times(schedule.cron, schedule.timezone).after(now)
        rows.append(
            {
                **found["schedule"],
                "last": found["last"],
                "calendar": found.get("calendar", []),
                "next": iso_utc(due),
                "kept_here": has_scheduler(store, schedule.pipeline),
            }
        )
    return rows
