"""Workers that end: whatever Ray calls it, their chunk is computed by another, or the job fails."""

from collections import Counter

import pytest
import ray
import torch
from evaluate_kit import job
from ray.exceptions import ActorDiedError, OutOfMemoryError, RuntimeEnvSetupError

from pipelines.evaluation.worker import Worker
from pipelines.evaluation.workers import MAX_DEATHS, Workers, WorkersDied, run
from pipelines.store.artifacts import Store

ENDS = [ActorDiedError(), OutOfMemoryError("killed by the monitor"), RuntimeEnvSetupError("no")]


class Cluster:
    """Ray's calls, answered at once in this process: those of ``failing`` with an error."""

    def __init__(self, monkeypatch):
        self.failing, self.calls, self.killed = {}, Counter(), 0
        for name in ("remote", "wait", "get", "kill"):
            monkeypatch.setattr(ray, name, getattr(self, name))

    def remote(self, **resources):
        class Call:
            def __init__(self, what):
                self.what = what

            def remote(self, chunk=None):
                return object(), chunk.file if chunk else "open"

        class Actor:
            def __init__(self, job):
                self.open, self.compute = Call("open"), Call("compute")

        Actor.remote = staticmethod(lambda job: Actor(job))
        self.resources = resources
        return lambda worker: Actor

    def wait(self, calls, num_returns):
        return calls[:num_returns], calls[num_returns:]

    def get(self, call):
        name = call[1]
        self.calls[name] += 1
        error, times = self.failing.get(name, (None, 0))
        if self.calls[name] <= times:
            raise error

    def kill(self, actor):
        self.killed += 1


@pytest.fixture
def cluster(monkeypatch):
    return Cluster(monkeypatch)


@pytest.fixture
def of(tmp_path):
    return job(Store.open(str(tmp_path)), count=12, batch=4)


@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
def test_the_chunk_of_a_worker_that_ends_goes_to_another(cluster, of, error):
    chunk = of.pictures()[1].file
    cluster.failing = {chunk: (error, MAX_DEATHS - 1), "open": (error, 1)}
    run(of, Workers(count=2))
    assert cluster.calls[chunk] == MAX_DEATHS
    assert all(cluster.calls[one.file] >= 1 for one in of.pictures())
    assert cluster.killed == 2 + MAX_DEATHS


@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
def test_a_chunk_or_a_model_that_ends_every_worker_ends_the_job(cluster, of, error):
    chunk = of.pictures()[0].file
    cluster.failing = {chunk: (error, 99)}
    with pytest.raises(WorkersDied, match=f"3 workers died while computing {chunk}"):
        run(of, Workers(count=2))
    cluster.failing = {"open": (error, 99)}
    with pytest.raises(WorkersDied, match="6 workers died while loading the models"):
        run(of, Workers(count=2))


def test_a_batch_that_does_not_fit_into_a_gpu_is_one_line(of, monkeypatch):
    def full(*given, **how):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr("pipelines.evaluation.worker.draw", full)
    worker = Worker(of)
    worker.open()
    with pytest.raises(ValueError, match=r"a batch of 4 does not fit .*lower `evaluate.batch`"):
        worker.compute(of.pictures()[0])
