"""Which workers a pool keeps, and whose requests to stop a worker heeds."""

from concurrent.futures import Future

import pytest

from pipelines.runs.context import Context
from pipelines.spec.training import Workers
from pipelines.training import preemption
from pipelines.training.warm import NEXT_TO_NOTHING, Pool, Shape


def context(**workers):
    runtime = {"workers": Workers.model_validate(workers).settings()}
    return Context(
        node="train/base/E0_0",
        fingerprint="f",
        store=None,
        folder="nodes/train/base/E0_0",
        cpus=2,
        runtime=runtime,
        manifests={},
        board=None,
    )


def shape(**workers):
    return Shape.of(context(keep_warm=True, **workers))


class Worker:
    """Stands in for a run of Ray Train: lists its jobs, and whether it was told to end."""

    def __init__(self, shape):
        self.shape, self.run, self.jobs, self.told = shape, Future(), [], False

    def do(self, work, argument):
        self.jobs.append(argument)
        return work(argument)

    def end(self):
        self.told = True
        self.run.set_result(None)


class Started:
    """A pool, and the workers that it started."""

    def __init__(self):
        self.pool, self.workers = Pool(), []

    def start(self, shape):
        self.workers.append(Worker(shape))
        return self.workers[-1]

    def do(self, shape, work=lambda argument: {"done": argument}, argument=0):
        with self.pool.room_for(shape):
            return self.pool.do(shape, lambda: self.start(shape), work, argument)


@pytest.fixture
def started(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return Started()


def test_only_trainings_that_ask_for_it_and_have_one_worker_run_in_a_warm_one():
    assert Shape.of(context()) is None
    assert shape() == shape() != shape(timeout_s=9.0) != shape(labels={"group": "base"})
    with pytest.raises(ValueError, match="`keep_warm: true` is for trainings with one worker"):
        Workers(keep_warm=True, count=2)


def test_the_next_job_of_a_shape_goes_to_the_same_worker(started):
    assert [started.do(shape(), argument=n) for n in range(3)] == [{"done": n} for n in range(3)]
    [worker] = started.workers
    assert worker.jobs == [0, 1, 2] and not worker.told
    started.pool.close(0)
    assert worker.told and started.pool.idle == []


def test_jobs_at_the_same_time_have_a_worker_each(started):
    def another(argument):
        return started.do(shape(), argument=2) | {"outer": argument}

    assert started.do(shape(), another, 1) == {"done": 2, "outer": 1}
    assert [w.jobs for w in started.workers] == [[1], [2]] and len(started.pool.idle) == 2


def test_a_worker_of_another_shape_takes_the_place_of_an_idle_one(started):
    for timeout_s in (8.0, 9.0):
        started.do(shape(timeout_s=timeout_s))
    assert [w.told for w in started.workers] == [True, False]


def test_a_worker_whose_job_failed_or_that_died_idle_gets_no_other_job(started):
    def fail(_):
        raise KeyError("no such tensor")

    with pytest.raises(KeyError):
        started.do(shape(), fail)
    assert started.pool.idle == []
    started.do(shape())
    started.workers[-1].run.set_exception(OSError("died while idle"))
    started.do(shape())
    assert len(started.workers) == 3


def test_on_a_machine_of_its_own_an_idle_worker_holds_no_cpus_so_it_stays_beside_others(started):
    assert shape().ray_cpus == NEXT_TO_NOTHING and not shape().holds_resources
    started.do(shape())
    with started.pool.room_for(None):
        assert not started.workers[0].told


def test_on_a_cluster_idle_workers_make_room_for_a_node_of_another_kind(started, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "there:6379")
    assert shape().ray_cpus == 2 and shape().holds_resources
    started.do(shape())
    with started.pool.room_for(shape()):
        assert not started.workers[0].told
    with started.pool.room_for(None):
        assert started.workers[0].told
        started.do(shape())  # it may be waiting for what this one holds
        assert started.workers[1].told and started.pool.idle == []


def test_idle_gpus_are_held_everywhere(started):
    assert shape(gpus=1).holds_resources and shape(gpus=1).ray_cpus == 2


def test_a_request_to_stop_one_job_is_not_heeded_by_the_next(monkeypatch):
    monkeypatch.setattr(preemption, "_reasons", [])
    preemption.follow(None, "a")
    preemption._job.stop_reason = "it exceeded its `max_hours:`"
    assert preemption.stop_reason() == "it exceeded its `max_hours:`"
    preemption.follow(None, "b")
    assert preemption.stop_reason() is None
    preemption.request_stop("SIGTERM")  # to the process, so to every job
    preemption.follow(None, "c")
    assert preemption.stop_reason() == "SIGTERM"
    monkeypatch.setattr(preemption, "_reasons", [])
    preemption.follow(None)
