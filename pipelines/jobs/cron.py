"""Times of a schedule, from cron's five fields and a time zone.

APScheduler computes them. It differs from cron and Kubernetes in two ways, handled here: it counts
weekdays from Monday instead of Sunday, and requires day *and* weekday to match instead of either.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def cron_trigger(text: str, timezone: str) -> Any:
    """An APScheduler trigger for a cron line.

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
            timezone=zone,
        )
        if trigger.get_next_fire_time(None, datetime.now(UTC)) is None:
            raise ValueError("no such day exists")
    except ValueError as error:
        raise ValueError(
            f'cron "{text}": {str(error)[:1].lower()}{str(error)[1:]}; write minute, hour, day, '
            'month and weekday, as in "0 3 * * 1" for Mondays at 3'
        ) from None
    return trigger


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
