"""The status of a run, while it runs and afterwards."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from pipelines.reports import status as status_view
from pipelines.reports.live import LiveLines
from pipelines.runs.execution import Execution
from pipelines.runs.lease import only_driver
from pipelines.store.artifacts import Store

NOW = datetime(2026, 1, 1, 1, 0, 0, tzinfo=UTC)
DONE = {
    "state": "done",
    "seconds": 83.0,
    "since": "2026-01-01T00:30:00+00:00",
    "attempt": 1,
    "by": "alpha",
}
RUNNING = {
    "state": "running",
    "since": "2026-01-01T00:59:00+00:00",
    "done": 640,
    "of": 1280,
    "unit": "images",
    "rate": 12.8,
}


def execution(**more):
    given = {
        "id": "demo-1",
        "pipeline": "demo",
        "fingerprint": "f",
        "attempt": 2,
        "started": "2026-01-01T00:00:00+00:00",
        "nodes": {
            "train/base/E0_0": DONE,
            "train/base/E1_1": RUNNING,
            "train/base/E1_0": {"state": "waiting", "for": "other"},
            "promote/demo": {"state": "waiting"},
        },
    }
    return Execution(**{**given, **more})


def test_each_node_has_its_state_time_and_progress_or_host():
    lines = status_view.text("running (alpha)", execution(), NOW).splitlines()
    assert lines == [
        "demo-1, attempt 2: running (alpha)",
        "  1 of 4 nodes done; 1 running",
        "  train/base/E0_0  done            1:23  2026-01-01 00:30:00 UTC on alpha, attempt 1",
        "  train/base/E1_1  running         1:00  640 of 1,280 images, 13 images/s, 0:50 left",
        "  train/base/E1_0  waiting               for pipeline other, which is building it",
        "  promote/demo     waiting",
    ]


def test_an_ended_run_says_how_long_it_took_and_why_a_node_failed():
    failed = {**DONE, "state": "failed", "error": "out of memory"}
    ended = execution(
        state="failed", ended="2026-01-01T02:00:00+00:00", nodes={"train/base/E0_0": failed}
    )
    lines = status_view.text("failed", ended, NOW).splitlines()
    assert lines[0] == "demo-1, attempt 2: failed after 2:00:00"
    assert lines[1] == "  0 of 1 nodes done; 1 failed"
    assert lines[2].endswith("attempt 1  out of memory")


def test_results_of_an_earlier_attempt_show_their_host():
    mine, others = {**DONE, "state": "reused"}, {**DONE, "state": "reused", "attempt": 2}
    found = execution(nodes={"data/train": mine, "data/validation": others})
    _, _, first, second = status_view.text("running", found, NOW).splitlines()
    assert first.endswith("UTC on alpha, attempt 1") and second.endswith("1:23")


def test_a_record_of_an_older_version_is_still_shown():
    nodes = {"train/base/E0_0": {"state": "running", "why": "never done here"}}
    assert "train/base/E0_0  running" in status_view.text("running", execution(nodes=nodes), NOW)


@pytest.fixture
def store(tmp_path):
    return Store.at(str(tmp_path))


def test_the_state_says_whether_the_driver_is_alive(store):
    run = execution()
    assert status_view.describe_state(store, run).startswith(
        "stopped (its driver is gone; the same"
    )
    with only_driver(store, "demo"):
        assert status_view.describe_state(store, run).startswith("running (")
        assert status_view.data(store, run)["driver"]["alive"]
    assert ", process " in status_view.describe_state(store, run)
    assert status_view.data(store, run)["driver"]["alive"] is False
    assert status_view.describe_state(store, replace(run, state="interrupted")).startswith(
        "interrupted ("
    )
    assert status_view.describe_state(store, replace(run, state="cancelled")) == "cancelled"


class Lines(LiveLines):
    """A log file, or a terminal of so many characters; keeps what it is told."""

    def __init__(self, width=None):
        super().__init__()
        self.characters, self.printed, self.shown = width, [], []

    width = property(lambda self: self.characters)

    def print(self, line):
        self.printed.append(line)

    def show(self, lines):
        self.shown.append(lines)


def followed(lines, looks):
    """Follow a run through these looks at it, each one poll after the last."""
    looks, clock = list(looks), [0.0]

    def sleep(seconds):
        clock[0] += seconds

    status_view.follow(lambda: looks.pop(0), lines, sleep, lambda: clock[0])
    return lines


def test_following_reports_each_change_once_until_the_end():
    later = {**RUNNING, "done": 1280}
    looks = [
        execution(),
        execution(),
        execution(nodes={**execution().nodes, "train/base/E1_1": later}),
        execution(nodes={**execution().nodes, "train/base/E1_1": DONE}),
    ]
    ended = execution(
        state="done", ended="2026-01-01T02:00:00+00:00", nodes={"train/base/E1_1": DONE}
    )
    said = followed(Lines(), [*(("running", look) for look in looks), ("done", ended)]).printed
    assert said[0].startswith("demo-1, attempt 2: running")
    assert [line.split()[:2] for line in said[1:-1]] == [["train/base/E1_1", "done"]]
    assert said[-1] == "demo-1: done after 2:00:00"


def test_a_log_file_gets_a_line_a_minute_whatever_runs():
    minutes = 10
    polls = int(minutes * 60 / status_view.POLL_S) + 1
    lines = followed(
        Lines(), [("running", execution())] * polls + [("done", execution(state="done"))]
    )
    summaries = [line for line in lines.printed if line.startswith("  1 of 4 nodes done; ")]
    assert len(summaries) == minutes and len(lines.printed) == minutes + 2


def test_a_terminal_of_80_columns_shows_the_nodes_at_work_and_nothing_twice():
    looks = [("running", execution())] * 100 + [("done", execution(state="done"))]
    lines = followed(Lines(80), looks)
    assert len(lines.printed) == 2 and len(lines.shown) == 101
    assert lines.shown[-1] == ""
    for line in "\n".join([*lines.printed, *lines.shown]).splitlines():
        assert len(line) <= 80, line
    assert "train/base/E1_1" in lines.shown[0] and "promote" not in lines.shown[0]


def test_80_columns_cut_nothing_off():
    failed = {**DONE, "state": "failed", "error": "the loss is not finite; " * 8}
    run = execution(nodes={**execution().nodes, "train/base/E0_0": failed})
    wide = status_view.text("running (alpha, process 17)", run, NOW)
    narrow = status_view.text("running (alpha, process 17)", run, NOW, width=80)
    assert max(map(len, narrow.splitlines())) <= 80 < max(map(len, wide.splitlines()))
    assert narrow.split() == wide.split()


def test_following_escapes_what_others_wrote():
    nodes = {"a\nfake": {**DONE, "state": "failed", "error": "b\nfake"}}
    looks = [
        ("running\nfake", execution(id="c\nfake")),
        ("running", execution(id="c\nfake", nodes=nodes)),
        ("done\nfake", execution(id="c\nfake", state="done", nodes=nodes)),
    ]
    lines = followed(Lines(80), looks)
    shown = "\n".join([*lines.printed, *lines.shown])
    assert "\\nfake" in shown and not any(s.startswith("fake") for s in shown.splitlines())


@pytest.mark.parametrize(
    ("left", "shown"),
    [
        ({"seconds": 600.0, "unknown": [], "grows": False}, "about 9:00 left"),
        ({"seconds": 600.0, "unknown": [], "grows": True}, "at least 9:00 left"),
        (
            {"seconds": 600.0, "unknown": ["a", "b"], "grows": False},
            "about 9:00 left, not counting 2 nodes never timed before",
        ),
        ({"seconds": 0.0, "unknown": ["a"], "grows": False}, "1 node never timed before"),
    ],
)
def test_the_summary_says_what_is_left_of_the_estimate(left, shown):
    run = execution(left={**left, "at": "2026-01-01T00:59:00+00:00"})
    assert status_view.summary(run, NOW) == (
        f"1 of 4 nodes done; train/base/E1_1 50 %, 13 images/s; {shown}"
    )


def test_a_summary_names_few_of_many_nodes():
    nodes = {
        f"train/base/E5_{i}": {"state": "running", "since": RUNNING["since"]} for i in range(9)
    }
    said = status_view.summary(execution(nodes=nodes), NOW)
    assert said.endswith("train/base/E5_2 1:00; 6 more run")


def test_following_ends_when_the_driver_is_gone():
    said = followed(Lines(), [("stopped (its driver is gone)", execution())]).printed
    assert said[-1] == "demo-1: stopped (its driver is gone)"
