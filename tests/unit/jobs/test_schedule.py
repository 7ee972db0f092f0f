"""When a scheduler runs, what it logs and stores, and how it ends; with a simulated clock."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from paths import SMOKE

from pipelines import cli
from pipelines.executor.stopping import Stop
from pipelines.jobs import child, cron, schedule, schedule_state
from pipelines.jobs.schedule import Outcome
from pipelines.jobs.schedule_state import Schedule, ScheduleState
from pipelines.runs.threads import in_thread
from pipelines.store.artifacts import Store

START = datetime(2026, 11, 27, 12, tzinfo=UTC)
HOURLY = Schedule(pipeline="demo", spec="demo.yaml", verb="run", cron="0 * * * *", timezone="UTC")
PATIENCE_S = 120


def hours(count, minutes=0):
    return timedelta(hours=count, minutes=minutes)


class Night:
    """A scheduler with a simulated clock, which advances when it sleeps or runs, and an end."""

    def __init__(self, folder, begin=START, length=None, asked=HOURLY):
        self.clock, self.asked = begin, asked
        self.end = begin + (length or hours(3, 30))
        self.store, self.said, self.worked = Store.at(str(folder)), [], []
        self.stop = Stop()
        self.takes, self.outcome = [], Outcome(state="done")

    def sleep(self, seconds):
        self.pass_(timedelta(seconds=max(seconds, 1)))

    def pass_(self, length):
        self.clock += length
        if self.clock >= self.end:
            self.stop.signal = signal.SIGTERM

    def tick(self, at):
        self.worked.append(at)
        self.pass_(self.takes.pop(0) if self.takes else timedelta(0))
        return Outcome(state="interrupted") if self.stop.signal else self.outcome

    def keep(self):
        kept = ScheduleState(self.store, self.asked, self.clock, self.said.append)
        schedule.run_schedule(
            self.asked,
            kept,
            self.tick,
            self.said.append,
            self.stop,
            times=cron.cron_times(self.asked.cron, self.asked.timezone),
            now=lambda: self.clock,
            sleep=self.sleep,
        )
        return [at.replace(microsecond=0) - START for at in self.worked]

    def file(self):
        return self.store.read_json("schedules/demo.json")


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    monkeypatch.setattr(schedule, "POLL_S", 60.0)
    monkeypatch.setattr(child, "POLL_S", 0.02)


def test_every_tick_runs_once(tmp_path):
    night = Night(tmp_path)
    assert night.keep() == [hours(1), hours(2), hours(3)]
    assert night.said[:2] == ["done in 0:00", "next run: 2026-11-27 14:00 UTC"]
    assert night.file()["last"] == {
        "started": "2026-11-27T15:00:00+00:00",
        "state": "done",
        "said": "",
        "took_s": 0.0,
    }


def test_a_tick_during_a_run_is_skipped_and_logged(tmp_path):
    night = Night(tmp_path, length=hours(5, 30))
    night.takes = [hours(2, 30)]
    assert night.keep() == [hours(1), hours(4), hours(5)]
    assert (
        night.said[1] == "skipped the run due at 2026-11-27 14:00 UTC: the last was still running"
    )
    assert night.said[2] == "next run: 2026-11-27 16:00 UTC"


def test_ticks_missed_by_a_suspended_machine_run_once(tmp_path):
    night = Night(tmp_path, length=hours(9, 30))
    night.takes = [timedelta(0)]
    waited = night.sleep
    night.sleep = lambda s: waited(hours(5, 10).total_seconds() if len(night.worked) == 1 else s)
    assert night.keep()[:3] == [hours(1), hours(6, 10), hours(7)]
    assert "the run due at 2026-11-27 14:00 UTC was missed; it starts now" in night.said


def test_ticks_missed_while_the_scheduler_was_down_run_once(tmp_path):
    Night(tmp_path).keep()
    later = Night(tmp_path, begin=START + hours(9, 20), length=hours(1))
    assert later.keep() == [hours(9, 20), hours(10)]
    assert later.said[0] == "the run due at 2026-11-27 16:00 UTC was missed; it starts now"
    again = Night(tmp_path, begin=START + hours(10, 40), length=hours(0, 10))
    assert again.keep() == [] and again.said == []


def calendar(night):
    events = night.file()["calendar"]
    return [(datetime.fromisoformat(e["due"]) - START, e["state"], e["said"]) for e in events]


def test_the_calendar_tells_what_ran_was_skipped_and_was_missed(tmp_path):
    first = Night(tmp_path, length=hours(5, 30))
    first.takes = [hours(2, 30)]
    first.outcome = Outcome(state="skipped", message="no new files")
    first.keep()
    later = Night(tmp_path, begin=START + hours(8, 20), length=hours(1))
    later.keep()
    made_up = "no scheduler was running; made up for at 2026-11-27T20:20:00+00:00"
    assert calendar(later) == [
        (hours(1), "skipped", "no new files"),
        (hours(2), "skipped", "the last run was still running"),
        (hours(4), "skipped", "no new files"),
        (hours(5), "skipped", "no new files"),
        (hours(6), "missed", made_up),
        (hours(7), "missed", made_up),
        (hours(8), "missed", made_up),
        (hours(8, 20), "done", ""),
        (hours(9), "done", ""),
    ]


def test_the_calendar_keeps_the_last_events_only(tmp_path, monkeypatch):
    monkeypatch.setattr(schedule_state, "CALENDAR_LENGTH", 2)
    night = Night(tmp_path)
    night.keep()
    assert [due for due, *_ in calendar(night)] == [hours(2), hours(3)]


def test_a_gap_of_years_is_noted_in_short(tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "MISSED_NOTED", 3)
    Night(tmp_path).keep()
    later = Night(tmp_path, begin=START + hours(9000, 20), length=hours(0, 10))
    later.keep()
    states = [state for _, state, _ in calendar(later)]
    assert states == ["done"] * 3 + ["missed"] * 3 + ["done"]


def test_ticks_since_the_first_start_of_the_scheduler_are_caught_up(tmp_path):
    assert Night(tmp_path, length=hours(0, 30)).keep() == []
    assert Night(tmp_path, begin=START + hours(1, 30), length=hours(0, 10)).keep() == [hours(1, 30)]


def test_a_clock_that_is_set_back_repeats_nothing(tmp_path):
    night = Night(tmp_path)
    night.takes = [hours(0, 0) - timedelta(minutes=20)]
    assert night.keep() == [hours(1), hours(2), hours(3)]


def test_a_clock_that_was_ahead_for_years_silences_nothing(tmp_path):
    night, years = Night(tmp_path), timedelta(days=4000)
    end, waited = night.end, night.sleep
    night.takes, night.end = [years], end + 2 * years

    def sleep(seconds):
        waited(seconds)
        if night.clock > START + years:  # somebody puts it right
            night.clock, night.end = night.clock - years, end

    night.sleep = sleep
    assert night.keep() == [hours(1), hours(2), hours(3)]
    assert [said for said in night.said if said.startswith("the clock was ahead, at 2037-11-09")]


def test_a_scheduler_that_starts_with_a_record_from_the_future_goes_on(tmp_path):
    ahead = Night(tmp_path, begin=START + timedelta(days=4000))
    assert len(ahead.keep()) == 3
    night = Night(tmp_path)
    assert night.keep() == [hours(1), hours(2), hours(3)]
    assert night.said[0].startswith(
        "the clock was ahead, at 2037-11-09 15:00 UTC; it is 2026-11-27"
    )
    assert night.file()["seen"] == "2026-11-27T15:00:00+00:00"


def test_an_unfinished_run_that_continues_on_a_clock_set_back_repeats_nothing(tmp_path):
    night = Night(tmp_path)
    night.takes = [hours(2, 40)]
    assert night.keep() == [hours(1)]  # interrupted, while 13:00 was checked
    back = Night(tmp_path, begin=START + hours(0, 30), length=hours(1, 0))
    assert back.keep() == [hours(0, 30)]
    assert back.file()["seen"] == "2026-11-27T13:00:00+00:00"


BERLIN = replace(HOURLY, cron="30 2 * * *", timezone="Europe/Berlin")


def test_a_nightly_run_runs_once_when_the_clock_shows_its_time_twice(tmp_path):
    begin = datetime(2026, 10, 24, 22, tzinfo=UTC)  # midnight
    night = Night(tmp_path, begin, hours(10), BERLIN)
    night.keep()
    assert [f"{at:%d %H:%M}" for at in night.worked] == ["25 00:30"]


def test_a_nightly_run_runs_once_when_the_clock_never_shows_its_time(tmp_path):
    night = Night(tmp_path, datetime(2026, 3, 28, 23, tzinfo=UTC), hours(10), BERLIN)
    night.keep()
    assert [f"{at:%d %H:%M}" for at in night.worked] == ["29 01:00"]


@pytest.mark.slow
def test_a_changed_schedule_has_missed_nothing(tmp_path):
    Night(tmp_path).keep()
    daily = Schedule(
        pipeline="demo", spec="demo.yaml", verb="run", cron="0 1 * * *", timezone="UTC"
    )
    assert Night(tmp_path, START + hours(48), hours(1), daily).keep() == []


def test_an_interrupted_run_continues_after_a_restart(tmp_path):
    night = Night(tmp_path)
    night.takes = [hours(2, 40)]
    assert night.keep() == [hours(1)]
    assert night.file()["last"]["state"] == "interrupted"
    back = Night(tmp_path, begin=START + hours(3, 50), length=hours(0, 5))
    assert back.keep() == [hours(3, 50)]
    assert back.said[0] == "continues the last run, which was not finished"


def test_a_run_continues_after_its_scheduler_was_killed(tmp_path):
    night = Night(tmp_path)
    kept = ScheduleState(night.store, HOURLY, START, night.said.append)
    kept.save(START, started="2026-11-27T12:00:00+00:00", state="running")
    assert Night(tmp_path, begin=START + hours(0, 5), length=hours(0, 5)).keep() == [hours(0, 5)]


def test_a_store_that_cannot_be_written_does_not_end_the_scheduler(tmp_path):
    (tmp_path / "schedules").write_text("in the way")
    night = Night(tmp_path)
    kept = ScheduleState(night.store, HOURLY, START, night.said.append)
    kept.save(START)
    assert "cannot be written" in night.said[0]


# -- a verb's process -----------------------------------------------------------------------------


def performed(folder, code, stop=None, idle=lambda: ""):
    """→ (outcome, logged lines, file of the output)."""
    said, store = [], Store.at(str(folder))
    command = [sys.executable, "-c", code]
    outcome = schedule.run_verb(HOURLY, store, idle, said.append, stop or Stop(), START, command)
    return outcome, said, folder / "schedules/demo/20261127-120000.log"


def test_the_output_of_a_verb_is_in_a_file_of_the_store(tmp_path):
    outcome, said, log = performed(tmp_path, "print('hello'); import sys; sys.stderr.write('!')")
    assert outcome == Outcome(state="done")
    assert log.read_text() == "!hello\n" or log.read_text() == "hello\n!"
    assert said == [f"started; output in {log}"]


def test_a_verb_that_skips_says_why(tmp_path):
    outcome, _, log = performed(tmp_path, "print('looked'); print('skipped: no new data')")
    assert outcome == Outcome(state="skipped", message="no new data")
    assert not log.exists()


def test_a_failed_verb_is_reported_with_its_last_line(tmp_path):
    outcome, _, log = performed(tmp_path, "print('a'); import sys; sys.exit('ediffi: no bucket')")
    assert outcome == Outcome(state="failed", message="ediffi: no bucket", code=1)
    assert "no bucket" in log.read_text()
    outcome, _, _ = performed(
        tmp_path, "import os; print('half', flush=True); os.kill(os.getpid(), 9)"
    )
    assert outcome.message == "killed by SIGKILL; half"
    assert outcome.code == 137


def test_a_cancelled_run_is_not_resumed(tmp_path):
    outcome, _, _ = performed(tmp_path, "print('cancelled; kept'); raise SystemExit(130)")
    assert outcome == Outcome(state="failed", message="cancelled; kept", code=130)


def test_no_process_starts_if_nothing_changed(tmp_path):
    outcome, said, log = performed(tmp_path, "raise SystemExit(1)", idle=lambda: "nothing changed")
    assert outcome == Outcome(state="skipped", message="nothing changed")
    assert not said and not log.exists()


def test_a_broken_spec_fails_the_tick_but_not_the_scheduler(tmp_path):
    def idle():
        raise ValueError("mine.yaml:\nno YAML")

    outcome, _, _ = performed(tmp_path, "", idle=idle)
    assert outcome == Outcome(state="failed", message="mine.yaml: no YAML", code=2)


SAVES = """
import signal, sys, time
def leave(number, frame):
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
while True:
    time.sleep(0.01)
"""


def test_a_stop_is_passed_on_and_waited_for(tmp_path):
    stop, log = Stop(), tmp_path / "schedules/demo/20261127-120000.log"

    at_work = in_thread(partial(performed, tmp_path, SAVES, stop))
    _until(lambda: log.exists() and "ready" in log.read_text())
    stop.signal = signal.SIGTERM
    outcome, _, _ = at_work.result(PATIENCE_S)
    assert outcome == Outcome(state="interrupted", code=143)
    assert log.read_text().endswith("saved\n")


def test_a_process_that_ignores_the_stop_is_killed_with_its_children(tmp_path):
    deaf = (
        "import os, signal, time; signal.signal(15, signal.SIG_IGN); pid = os.fork()\n"
        "os.write(1, b'%d\\n' % os.getpid())\n"  # one write: two processes write at once
        "while True: time.sleep(0.01)"
    )
    log, stop = tmp_path / "log", Stop()

    at_work = in_thread(partial(child.run, [sys.executable, "-c", deaf], log, stop, 0.1))
    _until(lambda: log.exists() and len(log.read_text().split()) == 2)
    stop.signal = signal.SIGTERM
    assert at_work.result(PATIENCE_S) == -signal.SIGKILL
    _until(lambda: not any(_is_alive(int(pid)) for pid in log.read_text().split()))


def _is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _until(reached):
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- the verb itself ------------------------------------------------------------------------------


@pytest.fixture
def ediffi(capsys, monkeypatch):
    """``ediffi(verb, …)`` → (exit code, what it printed)."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["ediffi", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, error = capsys.readouterr()
        return end.value.code, out + error

    return call


@pytest.mark.slow
def test_the_command_runs_until_stopped_and_lists_its_schedules(tmp_path, ediffi):
    mine = (SMOKE, "--storage", tmp_path, "--verb", "run")
    zone = ("--cron", "0 3 * * 1", "--timezone", "Europe/Berlin")
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "schedule", *mine, *zone],
        stdout=subprocess.PIPE,
        text=True,
    )
    first = process.stdout.readline()
    assert 'run smoke at "0 3 * * 1" (Europe/Berlin), next 20' in first and " 03:00 CE" in first

    code, said = ediffi("schedule", *mine, "--cron", "0 4 * * *")
    assert code == 2 and f"scheduler already (process {process.pid})" in said

    code, said = ediffi("schedule", "--list", "--storage", tmp_path, "--json")
    [row] = json.loads(said)
    assert (code, row["pipeline"], row["cron"], row["last"]) == (0, "smoke", "0 3 * * 1", {})
    assert row["kept_here"] is True

    process.send_signal(signal.SIGTERM)
    assert process.stdout.read().endswith("ends: stopped by SIGTERM\n")
    assert process.wait(PATIENCE_S) == 0
    _, said = ediffi("schedule", "--list", "--storage", tmp_path)
    assert "last  never" in said and "no scheduler is running here" in said


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((SMOKE,), "give a spec and its times"),
        (("--cron", "0 3 * * *"), "give a spec and its times"),
        ((SMOKE, "--cron", "0 3 * * *", "--verb", "plan"), "write retrain or run"),
        ((SMOKE, "--cron", "0 3 * * 9", "--verb", "run"), "'9' is not a weekday"),
    ],
)
def test_an_invalid_schedule_is_refused_before_anything_is_written(tmp_path, ediffi, args, said):
    code, printed = ediffi("schedule", *args, "--storage", tmp_path / "store")
    assert code == 2 and said in printed
    assert not (tmp_path / "store").exists()
