"""When a schedule's times come, from the five fields of cron and a time zone.

APScheduler reckons; but it counts weekdays from Monday where cron and Kubernetes count from Sunday,
and asks for the day *and* the weekday where they ask for either.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def times(text: str, timezone: str) -> Any:
    """An APScheduler trigger; ValueError if it is no cron line, or one whose time never comes."""
    from apscheduler.triggers.cron import CronTrigger

    zone = zone_of(timezone)
    fields = text.split()
    try:
        if len(fields) != 5:
            raise ValueError(f"it has {len(fields)} fields")
        minute, hour, day, month, weekday = fields
        if "*" not in (day[:1], weekday[:1]):
            raise ValueError("cron takes either day for enough; give one, and * for the other")
        trigger = CronTrigger(
            minute=minute,
            hour=hour,
            day=day,
            month=month,
            day_of_week=weekdays(weekday),
            timezone=zone,
        )
        if trigger.get_next_fire_time(None, datetime.now(UTC)) is None:
            raise ValueError("there is no such day")
    except ValueError as error:
        raise ValueError(
            f'cron "{text}": {str(error)[:1].lower()}{str(error)[1:]}; write minute, hour, day, '
            'month and weekday, as in "0 3 * * 1" for Mondays at 3'
        ) from None
    return trigger


def zone_of(timezone: str) -> ZoneInfo:
    try:
        return ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"there is no time zone {timezone!r}; write one as Europe/Berlin, or UTC"
        ) from None


def weekdays(field: str) -> str:
    """Cron's weekdays, 0 and 7 being Sunday, by their names."""
    if field == "*":
        return field
    found: set[int] = set()
    for part in field.lower().split(","):
        parts = re.fullmatch(r"(\*|(\w+)(?:-(\w+))?)(?:/(\d+))?", part)
        if not parts:
            raise ValueError(f"{part!r} is no weekday")
        _, first, last, step = parts.groups()
        begin = _number(first) if first else 0
        end = _number(last) if last else (begin if first and not step else 6)
        end += 7 if last and end == 0 else 0  # to Sunday, the last day of the week
        if begin > end or step == "0":
            raise ValueError(f"{part!r} is no range of weekdays")
        found.update(day % 7 for day in range(begin, end + 1, int(step or 1)))
    return ",".join(DAYS[day] for day in sorted(found))


def _number(day: str) -> int:
    if day in DAYS:
        return DAYS.index(day)
    if not day.isdecimal() or int(day) > 7:
        raise ValueError(f"{day!r} is no weekday")
    return int(day)
