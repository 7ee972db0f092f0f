"""Times of a schedule, from cron's five fields and a time zone.

APScheduler computes them. It differs from cron in three ways, handled here: it counts weekdays from
Monday instead of Sunday, requires day *and* weekday to match instead of either, and runs twice
where the clock shows a time twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


TICK = timedelta(microseconds=1)
WEEK = timedelta(days=7)
"""No time zone changes its offset and changes it back within a week."""


@dataclass(frozen=True, kw_only=True)
class CronTimes:
    """The times of a cron line; where the clock is moved, as Debian's cron has them.

    A line that names its hours runs once for every time of its day: 02:30 at the first of two in
    autumn, and in spring, when there is none, as the clock jumps over it. A line with ``*`` for the
    hour follows the clock: through both hours in autumn, and past the missing one in spring.
    """

    trigger: Any
    """APScheduler's trigger for the line, on a clock that is never moved."""

    zone: ZoneInfo
    names_hours: bool

    def after(self, moment: datetime) -> datetime:
        """The first time after a moment, in UTC.

        Args:
            moment: With a time zone.
        """
        start = moment.astimezone(UTC).replace(microsecond=0)
        offset = self._offset(start)
        wall = start + offset
        while True:
            on_wall: datetime = self.trigger.get_next_fire_time(None, wall + TICK)
            due = on_wall - offset
            change = self._first_change(start, due)
            if change is not None:
                before, start, offset = offset, change, self._offset(change)
                wall = change + (min(before, offset) if self.names_hours else offset) - TICK
                continue
            due = max(due, start)  # one that the clock jumped over is before the jump
            if not (self.names_hours and due.astimezone(self.zone).fold):
                return due
            wall = on_wall  # the second of two

    def _offset(self, moment: datetime) -> timedelta:
        return moment.astimezone(self.zone).utcoffset() or timedelta(0)

    def _first_change(self, start: datetime, end: datetime) -> datetime | None:
        """When the zone's offset first changes, after ``start`` and not after ``end``; to the
        second."""
        offset = self._offset(start)
        while start < end:
            week = min(start + WEEK, end)
            if self._offset(week) == offset:
                start = week
                continue
            while (half := (week - start) // timedelta(seconds=2)) > 0:
                middle = start + timedelta(seconds=half)
                if self._offset(middle) == offset:
                    start = middle
                else:
                    week = middle
            return week
        return None


def cron_times(text: str, timezone: str) -> CronTimes:
    """The times of a cron line.

    Args:
        text: minute, hour, day, month and weekday.
        timezone: name of a time zone, such as ``Europe/Berlin``.

    Raises:
        ValueError: The line is invalid, or its time never comes.
    """
    from apscheduler.triggers.cron import CronTrigger

    zone = parse_timezone(timezone)
    fields = text.split()
    try:
        if len(fields) != 5:
            raise ValueError(f"it has {len(fields)} fields")
        minute, hour, day, month, weekday = fields
        if "*" not in (day[:1], weekday[:1]):
            raise ValueError(
                "day and weekday are both given, and cron would run on either; give one, and * for "
                "the other"
            )
        trigger = CronTrigger(
            minute=minute,
            hour=hour,
            day=day,
            month=month,
            day_of_week=weekdays(weekday),
            timezone=UTC,
        )
        if trigger.get_next_fire_time(None, datetime.now(UTC)) is None:
            raise ValueError("no such day exists")
    except ValueError as error:
        raise ValueError(
            f'cron "{text}": {str(error)[:1].lower()}{str(error)[1:]}; write minute, hour, day, '
            'month and weekday, as in "0 3 * * 1" for Mondays at 3'
        ) from None
    return CronTimes(trigger=trigger, zone=zone, names_hours=hour not in ("*", "*/1"))


def parse_timezone(timezone: str) -> ZoneInfo:
    """A time zone by name; ValueError if it does not exist."""
    try:
        return ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"time zone {timezone!r} does not exist; write one such as Europe/Berlin, or UTC"
        ) from None


def weekdays(field: str) -> str:
    """Translate cron's weekdays (0 and 7: Sunday) to APScheduler's names."""
    if field == "*":
        return field
    found: set[int] = set()
    for part in field.lower().split(","):
        parts = re.fullmatch(r"(\*|(\w+)(?:-(\w+))?)(?:/(\d+))?", part)
        if not parts:
            raise ValueError(f"{part!r} is not a weekday")
        _, first, last, step = parts.groups()
        begin = _day_number(first) if first else 0
        end = _day_number(last) if last else (begin if first and not step else 6)
        end += 7 if last and end == 0 else 0  # a range that ends on Sunday
        if begin > end or step == "0":
            raise ValueError(f"{part!r} is not a range of weekdays")
        found.update(day % 7 for day in range(begin, end + 1, int(step or 1)))
    return ",".join(DAYS[day] for day in sorted(found))


def _day_number(day: str) -> int:
    if day in DAYS:
        return DAYS.index(day)
    if not day.isdecimal() or int(day) > 7:
        raise ValueError(f"{day!r} is not a weekday")
    return int(day)
