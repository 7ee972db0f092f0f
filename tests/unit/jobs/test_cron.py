"""Cron lines have the meaning that cron gives them."""

from datetime import UTC, datetime, timedelta

import pytest

from pipelines.jobs import cron

FRIDAY = datetime(2026, 11, 27, 12, tzinfo=UTC)


def nexts(line, count, timezone="UTC", after=FRIDAY):
    times, found = cron.cron_trigger(line, timezone), [after]
    for _ in range(count):
        found.append(times.get_next_fire_time(found[-1], found[-1]))
    return found[1:]


@pytest.mark.parametrize(
    ("field", "days"),
    [
        ("0", "Sun"),
        ("7", "Sun"),
        ("1", "Mon"),
        ("1-5", "Mon Tue Wed Thu Fri"),
        ("5-7", "Sun Fri Sat"),
        ("sat-sun", "Sun Sat"),
        ("*/2", "Sun Tue Thu Sat"),
        ("2/2", "Tue Thu Sat"),
        ("mon,3,FRI", "Mon Wed Fri"),
        ("*", "Sun Mon Tue Wed Thu Fri Sat"),
    ],
)
def test_weekdays_count_from_sunday(field, days):
    week = nexts(f"0 3 * * {field}", 7)
    assert {f"{day:%a}" for day in week} == set(days.split())
    assert all((day.hour, day.minute) == (3, 0) for day in week)


def test_times_follow_the_time_zone_through_daylight_saving():
    before = datetime(2026, 10, 24, 12, tzinfo=UTC)
    first, second = nexts("30 9 * * *", 2, "Europe/Berlin", before)
    assert (first.hour, second.hour) == (9, 9)
    assert second - first == timedelta(days=1)  # on the wall
    assert first.astimezone(UTC) - before == timedelta(hours=20, minutes=30)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 3 * *", "4 fields"),
        ("61 3 * * *", "61"),
        ("x 3 * * *", "minute"),
        ("0 3 30 2 *", "no such day"),
        ("0 3 * * 8", "'8' is not a weekday"),
        ("0 3 * * 5-2", "'5-2' is not a range"),
        ("0 3 * * 1/0", "'1/0' is not a range"),
        ("0 3 1 * 1", "either"),
    ],
)
def test_an_invalid_line_names_the_fault_and_the_remedy(line, said):
    with pytest.raises(ValueError, match="write minute, hour") as refused:
        cron.cron_trigger(line, "UTC")
    assert said in str(refused.value)


def test_a_time_zone_must_exist():
    with pytest.raises(ValueError, match="Europe/Berlin"):
        cron.cron_trigger("0 3 * * *", "Mars/Olympus")
