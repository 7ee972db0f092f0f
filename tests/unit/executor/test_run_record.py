"""The record of a run and its tree, while the store is away and while the tree is large."""

from types import SimpleNamespace

import pytest

from pipelines.executor import run_record
from pipelines.executor.patience import Patience
from pipelines.executor.run_record import RunRecord
from pipelines.runs.execution import Execution


@pytest.fixture
def at(monkeypatch):
    clock = SimpleNamespace(s=100.0)
    monkeypatch.setattr(run_record, "time", SimpleNamespace(monotonic=lambda: clock.s))
    return clock


def record_of(at, away=0):
    """A record whose tree takes 1 s to make, in a store that fails so many times."""
    written = []

    def write(path, tree):
        nonlocal away
        if away:
            away -= 1
            raise ConnectionError("away")
        written.append((path, tree))

    def tree():
        at.s += 1.0
        return {"experts": []}

    def wait(seconds):
        at.s += 600.0

    lease = SimpleNamespace(fenced=lambda folder: SimpleNamespace(write_json=write))
    patiently = Patience(3600.0, lambda line: None, now=lambda: at.s, sleep=wait)
    execution = Execution(id="r", pipeline="p", fingerprint="f", attempt=1)
    return RunRecord(execution, lease, patiently, tree), written


def test_a_tree_that_takes_long_is_saved_less_often(at):
    record, written = record_of(at)
    for _ in range(40):
        record.is_tree_saved = False
        record.save_tree_if_due()
        at.s += 1.0
    assert written == 2 * [("executions/r.tree.json", {"experts": []})]


def test_a_wait_for_the_store_does_not_delay_the_next_tree(at):
    record, written = record_of(at, away=3)
    record.save_tree_if_due()
    assert len(written) == 1 and record.tree_due_at - at.s == 20.0
