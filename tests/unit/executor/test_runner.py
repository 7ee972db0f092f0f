"""How the runner handles other pipelines' nodes, time limits, cancelling and a lost lease."""

import signal
import time
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from paths import SMOKE

from pipelines.dag import plan, sources
from pipelines.executor import progress
from pipelines.executor.console import Console
from pipelines.executor.runner import Runner
from pipelines.executor.stopping import Stop
from pipelines.runs.claims import Claims
from pipelines.runs.context import Result
from pipelines.runs.execution import begin, by_id
from pipelines.runs.lease import LeaseLost, only_driver
from pipelines.spec.loading import load
from pipelines.store.artifacts import Store
from pipelines.store.remote import StorageError
from pipelines.training.preemption import Preempted

SPEC = load(SMOKE)
NODE = "data/train"


class Record:
    """Stands in for MLflow: the nodes reported as reused."""

    def __init__(self):
        self.calls = []

    def reused(self, verdict, manifest):
        self.calls.append(verdict.node.id)

    def report(self, node, row):
        """Numbers do not matter here."""


class Board:
    """Stands in for the actor: the stop requests."""

    def __init__(self):
        self.calls, self.stop = [], self

    def remote(self, reason, node=""):
        self.calls.append((node, reason))


@pytest.fixture
def store(tmp_path):
    return Store.open(str(tmp_path))


@pytest.fixture
def runner(store):
    made = plan.make(SPEC, store, sources.identify_all(SPEC))
    execution = begin(made, store)
    with only_driver(store, "smoke") as lease:
        claims = Claims(store, "smoke", lease)
        yield Runner(made, store, execution, Record(), Console(), Stop(), claims)


@pytest.fixture
def waiting(runner):
    return {v.node.id: v for v in runner.reuse_finished(runner.plan.verdicts)}


def manifest_of(verdict):
    return {
        "fingerprint": verdict.fingerprint,
        "settings": dict(verdict.node.settings),
        "inputs": {},
        "metrics": {},
        "info": {},
        "seconds": 1.0,
    }


def test_a_node_that_another_pipeline_builds_is_waited_for_and_then_reused(
    runner, store, waiting, capsys
):
    verdict = waiting[NODE]
    with only_driver(store, "other") as lease:
        other = Claims(store, "other", lease)
        assert other.acquire(verdict.folder) is None
        assert not runner.claim(verdict, waiting) and not runner.claim(verdict, waiting)
        assert NODE in waiting
        assert NODE not in [v.node.id for v in runner.ready(waiting, [])]
        assert capsys.readouterr().out.count("is being built by pipeline other (") == 1
        assert by_id(store, runner.execution.id).nodes[NODE]["for"] == "other"
        store.commit(verdict.folder, [], manifest_of(verdict))
        other.release(verdict.folder)
    assert not runner.claim(verdict, waiting)
    assert NODE not in waiting and runner.lineage.calls == [NODE]
    assert runner.execution.nodes[NODE]["state"] == "reused" and NODE in runner.manifests
    assert not runner.claims.held


def test_a_node_that_nobody_builds_is_claimed(runner, waiting):
    assert runner.claim(waiting[NODE], waiting) and NODE in waiting
    assert runner.claims.held.keys() == {waiting[NODE].folder}


def test_higher_priorities_and_longer_paths_go_first(runner, waiting):
    assert [v.node.id for v in runner.ready(waiting, [])] == ["data/train", "data/validation"]
    late = waiting["data/validation"]
    waiting[late.node.id] = replace(late, node=replace(late.node, priority=1))
    assert [v.node.id for v in runner.ready(waiting, [])] == ["data/validation", "data/train"]
    busy = [replace(late, node=replace(late.node, cpus=2))]
    assert runner.ready(waiting, busy) == []


HOUR = 3600.0


@pytest.fixture
def later(monkeypatch):
    """``later(hours)`` advances the clock of the progress reports."""
    passed = [0.0]
    clock = SimpleNamespace(monotonic=lambda: sum(passed), time=time.time)
    monkeypatch.setattr(progress, "time", clock)
    return lambda hours: passed.append(hours * HOUR)


def limited(verdict):
    return replace(verdict, node=replace(verdict.node, runtime={"limit_hours": 2.0}))


def test_only_a_training_that_exceeds_its_limit_is_asked_to_stop(runner, waiting, later):
    runner.board = Board()
    timely, late = waiting["train/base/E1_0"], limited(waiting["train/base/E1_1"])
    for verdict in (timely, late):
        runner.progress.handle(verdict.node.id, {"at_work": True})
    later(1.9)
    runner.enforce_time_limits([timely, late])
    assert runner.board.calls == []
    later(0.2)
    runner.enforce_time_limits([timely, late])
    [(node, reason)] = runner.board.calls
    assert node == "train/base/E1_1" and reason.startswith("it exceeded its `max_hours:` of 2 h")


def test_waiting_for_machines_does_not_count_towards_a_trainings_limit(runner, waiting, later):
    runner.board = Board()
    verdict = limited(waiting["train/base/E1_1"])
    handle = partial(runner.progress.handle, verdict.node.id)
    later(50)  # in the queue
    handle({"at_work": True})
    later(1.5)
    handle({"at_work": False, "message": "lost its machine"})
    later(50)
    runner.enforce_time_limits([verdict])
    assert runner.board.calls == []
    handle({"done": 64, "of": 640, "unit": "images"})  # where the first report was lost
    later(0.4)
    runner.enforce_time_limits([verdict])
    assert runner.board.calls == []
    later(0.2)
    runner.enforce_time_limits([verdict])
    assert [node for node, _ in runner.board.calls] == [verdict.node.id]
    runner.progress.restart(verdict.node.id)
    assert runner.progress.worked_s(verdict.node.id) == 0


def test_a_run_that_is_cancelled_has_its_trainings_save_and_ends_as_such(
    runner, store, waiting, monkeypatch, capsys
):
    monkeypatch.setattr(runner, "receive_reports", lambda: None)  # there is no Ray actor
    saving, lost = Future(), Future()

    class Worker(Board):
        def remote(self, reason, node=""):
            if not saving.done():
                saving.set_exception(Preempted(f"{reason}; saved at 64 images"))

    runner.board, runner.stop.cancelled = Worker(), "alpha, process 1"
    trained, evaluated = "train/base/E1_1", "evaluate/base/root"
    at_work = {saving: waiting.pop(trained), lost: waiting.pop(evaluated)}
    runner.shut_down(at_work, waiting)
    assert (
        "cancelled by alpha, process 1; waiting up to 300 s for 1 training node to save and exit"
        in (capsys.readouterr().out)
    )
    kept = by_id(store, runner.execution.id)
    assert kept.state == "cancelled" and runner.failed == {}
    assert {kept.nodes[n]["state"] for n in (trained, evaluated)} == {"cancelled"}


def test_trainings_that_do_not_save_within_grace_s_are_named(runner, waiting, monkeypatch, capsys):
    monkeypatch.setattr(runner, "receive_reports", lambda: None)  # there is no Ray actor
    spec = runner.plan.spec
    assert spec.grace_s == 25
    runner.plan = replace(runner.plan, spec=spec.model_copy(update={"grace_s": 0.01}))
    runner.board, runner.stop.signal = Board(), signal.SIGTERM
    trained = "train/base/E1_1"
    runner.shut_down({Future(): waiting.pop(trained)}, waiting)
    said = capsys.readouterr().out
    assert f"not saved in time: {trained}; the next run continues" in said and "`grace_s:`" in said
    assert runner.execution.nodes[trained]["state"] == "interrupted"
    runner.stop.signal, runner.stop.cancelled = None, "alpha"
    assert runner.grace_s == 300
    runner.plan = replace(runner.plan, spec=spec.model_copy(update={"grace_s": 900.0}))
    assert runner.grace_s == 900


def test_an_error_of_cleaning_is_told_and_decides_nothing(runner, store, monkeypatch, capsys):
    monkeypatch.setattr(runner, "reuse_finished", lambda verdicts: [])
    monkeypatch.setattr(Store, "sweep", lambda store: ["[Errno 5] Input/output error: 'nodes'"])
    assert runner.run()
    assert by_id(store, runner.execution.id).state == "done"
    assert "temporary files may be left (1 errors): [Errno 5]" in capsys.readouterr().out


def test_a_driver_that_lost_its_lease_writes_nothing(runner, store, waiting):
    path = runner.claims.lease.path
    record = store.read_json(path)
    store.write_json(path, {**record, "owner": "another"})
    before = store.read(f"executions/{runner.execution.id}.json")
    with pytest.raises(LeaseLost):
        runner.commit(waiting[NODE], Result(files=[]), 1.0)
    with pytest.raises(LeaseLost):
        runner.set_state(waiting[NODE], "done")
    assert store.read(f"executions/{runner.execution.id}.json") == before


def test_a_commit_that_is_repeated_writes_the_same_manifest(runner, store, waiting, monkeypatch):
    times, written = iter(["first", "second", "third"]), []
    monkeypatch.setattr("pipelines.executor.runner.now", lambda: next(times))
    monkeypatch.setattr(runner.patiently, "sleep", lambda seconds: None)
    folder = waiting[NODE].folder
    runner.claims.acquire(folder)

    def answer_lost(folder, manifest, commit=runner.claims.commit):
        commit(folder, manifest)
        written.append(store.read(f"{folder}/manifest.json"))
        if len(written) == 1:
            raise ConnectionError("the answer is lost")

    monkeypatch.setattr(runner.claims, "commit", answer_lost)
    manifest = runner.commit(waiting[NODE], Result(files=[]), 1.0)
    assert len(written) == 2 and written[0] == written[1]
    assert manifest["finished"] == "first" == store.manifest(folder)["finished"]


def test_a_step_whose_store_is_away_is_repeated(runner, waiting, monkeypatch):
    away = StorageError("the bucket does not answer")
    away.passes = True
    ends = [away, StorageError("no such bucket"), away, Result(files=[])]

    def step(node, ctx, inputs):
        if isinstance(end := ends.pop(0), OSError):
            raise end
        return end

    monkeypatch.setattr("pipelines.executor.runner.run_step", step)
    monkeypatch.setattr(runner.patiently, "sleep", lambda seconds: None)
    runner.claims.acquire(waiting[NODE].folder)
    with pytest.raises(StorageError, match="no such bucket"):
        runner.run_node(waiting[NODE])
    assert runner.run_node(waiting[NODE])["fingerprint"] == waiting[NODE].fingerprint
    assert not ends


def test_a_nodes_speed_and_origin_are_recorded(runner, waiting, monkeypatch):
    runner.set_state(waiting[NODE], "running")
    state = runner.execution.nodes[NODE]
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    for done in (64, 192):
        runner.progress.record_rate(NODE, state, {"done": done, "of": 256})
    assert state["rate"] == 12.8
    monkeypatch.undo()
    runner.set_state(waiting[NODE], "done", seconds=20.0)
    runner.execution.nodes[NODE]["by"] = "elsewhere"
    runner.execution.attempt = 2
    runner.reuse(waiting[NODE], manifest_of(waiting[NODE]))
    kept = runner.execution.nodes[NODE]
    assert (kept["state"], kept["by"], kept["attempt"]) == ("reused", "elsewhere", 1)
