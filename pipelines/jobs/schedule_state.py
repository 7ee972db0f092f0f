"""What the store keeps of schedules, and who on this machine sees to one.

A scheduler that was down reads from it what it missed.
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


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What is done when."""

    pipeline: str
    spec: str
    verb: str
    arguments: tuple[str, ...] = ()
    """Further ones of the verb."""

    cron: str
    timezone: str

    def at(self, when: datetime, seconds: bool = False) -> str:
        form = "%Y-%m-%d %H:%M:%S %Z" if seconds else "%Y-%m-%d %H:%M %Z"
        return when.astimezone(cron.zone_of(self.timezone)).strftime(form)

    def command(self, storage: str) -> list[str]:
        verb = [self.verb, self.spec, "--storage", storage, *self.arguments]
        return [sys.executable, "-m", "pipelines.cli", *verb]


class Kept:
    """A schedule's file in the store: what it is, until when its times were seen to, its last."""

    def __init__(
        self, store: Store, schedule: Schedule, now: datetime, say: Callable[[str], None]
    ) -> None:
        self.store, self.place, self.say = store, f"{FOLDER}/{schedule.pipeline}.json", say
        self.content: dict[str, Any] = {
            "schedule": {**asdict(schedule), "arguments": list(schedule.arguments)},
            "seen": text(now),
            "last": {},
        }
        before = store.read_json(self.place)
        if before:
            self.content["last"] = before["last"]
            when = {k: before["schedule"][k] for k in ("cron", "timezone")}
            if when == {"cron": schedule.cron, "timezone": schedule.timezone}:
                self.content["seen"] = before["seen"]

    @property
    def seen(self) -> datetime:
        return datetime.fromisoformat(self.content["seen"])

    @property
    def unfinished(self) -> bool:
        """Whether the last was stopped, or its scheduler killed."""
        return self.content["last"].get("state") in ("running", "interrupted")

    def save(self, seen: datetime, **last: Any) -> None:
        self.content["seen"] = text(seen)
        self.content["last"].update(last)
        try:
            self.store.write_json(self.place, self.content)
        except OSError as error:  # the next may succeed, and a scheduler is to outlive the night
            self.say(f"{self.store.full(self.place)} cannot be written: {error}")


def text(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="seconds")


def logs_of(store: Store, pipeline: str) -> Path:
    return local_folder(store) / FOLDER / pipeline


@contextlib.contextmanager
def only_one(store: Store, pipeline: str) -> Iterator[None]:
    """Holds the schedule for this process; ValueError if another of this machine's does."""
    place = lock_of(store, pipeline)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(lock.held(place))
        except BlockingIOError:
            raise ValueError(
                f"pipeline {pipeline} has a scheduler already (process "
                f"{place.read_text().strip()}); end that one first"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def lock_of(store: Store, pipeline: str) -> Path:
    return local_folder(store) / FOLDER / f".{pipeline}.lock"


def is_kept(store: Store, pipeline: str) -> bool:
    """Whether a scheduler on this machine sees to it."""
    return lock.is_held(lock_of(store, pipeline))


def listed(store: Store, now: datetime) -> list[dict[str, Any]]:
    """Every schedule of a store, with its last and its next time."""
    rows = []
    for name in store.files(FOLDER):
        if "/" in name or not name.endswith(".json"):
            continue
        found = store.read_json(f"{FOLDER}/{name}")
        schedule = Schedule(**found["schedule"])
        due = cron.times(schedule.cron, schedule.timezone).get_next_fire_time(None, now)
        rows.append(
            {
                **found["schedule"],
                "last": found["last"],
                "next": text(due),
                "kept_here": is_kept(store, schedule.pipeline),
            }
        )
    return rows
