"""Cron lines have the meaning that cron gives them."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from pipelines.jobs import cron

FRIDAY = datetime(2026, 11, 27, 12, tzinfo=UTC)


def nexts(line, count, timezone="UTC", after=FRIDAY):
    times, found = cron.cron_times(line, timezone), [after]
    for _ in range(count):
        found.append(times.after(found[-1]))
    return [time.astimezone(ZoneInfo(timezone)) for time in found[1:]]


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


def shown(line, begin, end, timezone="Europe/Berlin"):
    """The times of a line between two times, as a clock there shows them."""
    zone, times, found = ZoneInfo(timezone), cron.cron_times(line, timezone), []
    now, last = (datetime.fromisoformat(t).replace(tzinfo=zone) for t in (begin, end))
    while (now := times.after(now)) <= last:
        found.append(f"{now.astimezone(zone):%d %H:%M %z}")
    return found


AUTUMN = "2026-10-24 12:00", "2026-10-26 12:00"  # at 3:00 on the 25th it is 2:00 again
SPRING = "2026-03-28 12:00", "2026-03-30 12:00"  # at 2:00 on the 29th it is 3:00


def test_a_time_that_comes_twice_in_autumn_is_the_first_of_both():
    assert shown("30 2 * * *", *AUTUMN) == ["25 02:30 +0200", "26 02:30 +0100"]
    assert shown("0 3 * * *", *AUTUMN) == ["25 03:00 +0100", "26 03:00 +0100"]
    assert shown("0 1,2,3 25 10 *", *AUTUMN) == [
        "25 01:00 +0200",
        "25 02:00 +0200",
        "25 03:00 +0100",
    ]


def test_after_the_first_of_two_times_comes_the_next_day():
    for minutes in range(0, 61, 15):  # the second 2:00 to 3:00
        now = datetime(2026, 10, 25, 1, tzinfo=UTC) + timedelta(minutes=minutes)
        [after] = nexts("30 2 * * *", 1, "Europe/Berlin", now)
        assert f"{after:%d %H:%M %z}" == "26 02:30 +0100"


def test_a_time_that_does_not_come_in_spring_is_when_the_clock_jumps():
    assert shown("30 2 * * *", *SPRING) == ["29 03:00 +0200", "30 02:30 +0200"]
    assert shown("0 2 29 3 *", *SPRING) == ["29 03:00 +0200"]
    assert shown("*/20 1-3 29 3 *", *SPRING) == [
        "29 01:00 +0100",
        "29 01:20 +0100",
        "29 01:40 +0100",
        "29 03:00 +0200",  # for 2:00, 2:20 and 2:40, and for 3:00 itself
        "29 03:20 +0200",
        "29 03:40 +0200",
    ]


def test_a_line_for_every_hour_follows_the_clock():
    day = "30 * {} * *"
    autumn, spring = (shown(day.format(d), *time) for d, time in ((25, AUTUMN), (29, SPRING)))
    assert (len(autumn), len(spring)) == (25, 23)
    assert autumn[2:5] == ["25 02:30 +0200", "25 02:30 +0100", "25 03:30 +0100"]
    assert spring[1:3] == ["29 01:30 +0100", "29 03:30 +0200"]
    assert len(shown("*/15 * 25 10 *", *AUTUMN)) == 100


@pytest.mark.parametrize(
    ("timezone", "begin", "line", "expected"),
    [
        # moved by half an hour, south of the equator
        ("Australia/Lord_Howe", "2026-04-04 12:00", "45 1 * * *", ["05 01:45 +1100"]),
        ("Australia/Lord_Howe", "2026-10-03 12:00", "15 2 * * *", ["04 02:30 +1100"]),
        # a day that did not exist: 30 December 2011
        ("Pacific/Apia", "2011-12-29 12:00", "30 2 30 12 *", ["31 00:00 +1400"]),
        # midnight does not exist
        ("America/Santiago", "2026-09-05 12:00", "0 0 * * *", ["06 01:00 -0300"]),
    ],
)
def test_zones_that_move_their_clocks_in_other_ways(timezone, begin, line, expected):
    end = f"{datetime.fromisoformat(begin) + timedelta(days=2 if '2011' in begin else 1)}"
    assert shown(line, begin, end, timezone) == expected


def test_lines_that_seldom_come_are_found_across_changes_of_the_clock():
    begin = datetime(2026, 7, 1, tzinfo=UTC)
    first, second = nexts("30 2 29 2 *", 2, "Europe/Berlin", begin)
    assert (f"{first:%F %R %z}", f"{second:%F %R %z}") == (
        "2028-02-29 02:30 +0100",
        "2032-02-29 02:30 +0100",
    )


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
        cron.cron_times(line, "UTC")
    assert said in str(refused.value)


def test_a_time_zone_must_exist():
    with pytest.raises(ValueError, match="Europe/Berlin"):
        cron.cron_times("0 3 * * *", "Mars/Olympus")
