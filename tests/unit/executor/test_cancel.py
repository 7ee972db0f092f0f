"""Cancel a run: by a request to its driver, or in its record if the driver is dead."""

import threading

import pytest

from pipelines.executor.cancel import cancel, mark_cancelled, watch_for_cancel
from pipelines.executor.stopping import Stop
from pipelines.runs.execution import Execution, begin, by_id, is_cancelled
from pipelines.runs.lease import only_driver
from pipelines.store.artifacts import Store


class Spec:
    name = "demo"


class Plan:
    spec, fingerprint = Spec, "f"


@pytest.fixture
def store(tmp_path):
    return Store.at(str(tmp_path))


@pytest.fixture
def run(store):
    """A run with one node running."""
    made = begin(Plan, store)
    made.nodes = {"train/a": {"state": "running"}, "train/b": {"state": "done"}}
    made.save(store)
    return made


@pytest.mark.slow
def test_a_live_driver_sees_the_request(store, run):
    stop = Stop()
    with only_driver(store, "demo"), watch_for_cancel(store, run.id, stop):
        assert stop.why is None
        assert "to save its training nodes and exit" in cancel(store, run)
        waited = threading.Event()
        while stop.why is None:
            waited.wait(0.02)
    assert stop.why.startswith("cancelled by ") and ", process " in stop.why
    assert by_id(store, run.id).state == "running", "only its driver ends it"


def test_a_run_without_a_driver_is_marked_as_cancelled(store, run):
    assert "cancelled; it had no driver" in cancel(store, run)
    found = by_id(store, run.id)
    assert found.state == "cancelled" and found.ended
    assert {n: r["state"] for n, r in found.nodes.items()} == {
        "train/a": "cancelled",
        "train/b": "done",
    }
    with pytest.raises(ValueError, match="is cancelled; there is nothing to cancel"):
        cancel(store, found)


def test_the_next_driver_starts_a_new_run(store, run):
    again = begin(Plan, store)
    assert (again.id, again.attempt) == (run.id, 2)
    again.state = "interrupted"
    again.save(store)
    cancel(store, again)
    new = begin(Plan, store)
    assert new.id != run.id and new.attempt == 1


def test_a_request_that_no_driver_saw_counts_for_the_next(store, run):
    """As in a bucket, where a driver that has just died seems alive."""
    with only_driver(store, "demo"):
        cancel(store, run)
    assert is_cancelled(store, run.id)
    assert begin(Plan, store).id != run.id
    assert by_id(store, run.id).state == "cancelled"


def test_a_run_that_ended_in_the_meantime_stays_as_it_is(store):
    ended = Execution(id="demo-1", pipeline="demo", fingerprint="f", attempt=1, state="done")
    assert mark_cancelled(store, ended) == "demo-1 has ended in the meantime: done"
