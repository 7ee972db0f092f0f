"""The status of a run, while it runs and afterwards."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from pipelines.reports import status as status_view
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
    assert lines[1].endswith("attempt 1  out of memory")


def test_results_of_an_earlier_attempt_show_their_host():
    mine, others = {**DONE, "state": "reused"}, {**DONE, "state": "reused", "attempt": 2}
    found = execution(nodes={"data/train": mine, "data/validation": others})
    _, first, second = status_view.text("running", found, NOW).splitlines()
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


def test_following_reports_each_change_once_until_the_end():
    later = {**RUNNING, "done": 1280}
    looks = [
        execution(),
        execution(),
        execution(nodes={**execution().nodes, "train/base/E1_1": later}),
        execution(nodes={**execution().nodes, "train/base/E1_1": DONE}),
        execution(state="done", ended="2026-01-01T02:00:00+00:00"),
    ]
    time = iter([0.0] + [status_view.POLL_S * i for i in range(1, 100)])
    states = ["running"] * 4 + ["done"]
    said = list(
        status_view.follow(
            lambda: (states.pop(0), looks.pop(0)), lambda _: None, lambda: next(time)
        )
    )
    assert said[0].startswith("demo-1, attempt 2: running")
    assert [line.split()[:2] for line in said[1:-1]] == [
        ["train/base/E1_1", "done"],
        ["train/base/E1_1", "running"],  # as this test's last look has it again
    ]
    assert said[-1] == "demo-1: done after 2:00:00"


def test_following_ends_when_the_driver_is_gone():
    said = list(status_view.follow(lambda: ("stopped (its driver is gone)", execution())))
    assert said[-1] == "demo-1: stopped (its driver is gone)"
