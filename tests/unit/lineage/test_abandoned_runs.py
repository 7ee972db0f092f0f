"""Runs whose driver is gone are ended by the next driver or by a cancellation; others are not."""

import shutil

import pytest
from record_kit import NODE, Driver, runs_of

from pipelines.executor.cancel import mark_cancelled
from pipelines.runs.execution import begin, by_id

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def uri(fresh_database, tmp_path):
    shutil.copy(fresh_database, tmp_path / "shared.db")
    return f"sqlite:///{tmp_path}/shared.db"


@pytest.fixture
def died(tmp_path, uri):
    """A driver that recorded a node and died."""
    gone = Driver(tmp_path / "store", uri)
    gone.start()
    gone.execution.nodes = {NODE: {"state": "running"}}
    gone.execution.save(gone.store)
    gone.until(lambda: gone.lineage.spool.is_empty, "delivery")
    gone.lineage.delivery.finish(5, 5)
    return gone


def states(uri):
    """(node, last characters of the execution's id, status, state) of every run."""
    return sorted(
        (
            node,
            run.data.tags["ediffi.execution"][-6:],
            run.info.status,
            run.data.tags["ediffi.state"],
        )
        for node, runs in runs_of(uri).items()
        for run in runs
    )


def test_the_next_driver_ends_abandoned_runs_of_its_own_store_only(died, tmp_path, uri):
    before = states(uri)
    assert {status for _, _, status, _ in before} == {"RUNNING"}
    elsewhere = Driver(tmp_path / "elsewhere", uri)  # a pipeline of the same name
    elsewhere.until(lambda: elsewhere.lineage.spool.is_empty, "delivery")
    assert set(before) < set(states(uri))
    last = by_id(died.store, died.execution.id)
    last.fingerprint = "another spec's"
    last.save(died.store)
    following = Driver(tmp_path / "store", uri)
    assert following.execution.id != died.execution.id
    following.until(lambda: following.lineage.spool.is_empty, "delivery")
    mine = died.execution.id[-6:]
    found = {(node, i): (status, state) for node, i, status, state in states(uri)}
    assert found[NODE, mine] == found["", mine] == ("KILLED", "killed")
    others = {v for (_, i), v in found.items() if i != mine}
    assert others == {("RUNNING", "running")}
    for each in (elsewhere, following):
        each.lineage.delivery.finish(5, 5)


def test_a_run_that_is_cancelled_without_a_driver_is_killed_in_mlflow(died, uri):
    said = mark_cancelled(died.store, died.execution)
    assert "cancelled; it had no driver" in said and "MLflow" not in said
    assert {(status, state) for _, _, status, state in states(uri)} == {("KILLED", "cancelled")}
    assert begin(died.plan, died.store).id != died.execution.id


def test_a_run_is_cancelled_even_if_mlflow_is_unreachable(died):
    died.execution.tracking["uri"] = "http://127.0.0.1:9"
    assert "MLflow cannot be reached" in mark_cancelled(died.store, died.execution)
    assert by_id(died.store, died.execution.id).state == "cancelled"
