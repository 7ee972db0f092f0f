"""Warm workers: the bytes of a training alone, and what becomes of one that fails or is killed."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import warm_kit
from kit import descendants, environment, is_alive, kill, own_ray, title
from test_notice import KITS, eventually

from pipelines.executor.ray_cluster import start_ray
from pipelines.runs.context import ProgressBoard
from pipelines.runs.threads import in_thread
from pipelines.training.preemption import Preempted
from pipelines.training.warm import POOL

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ray():
    import ray

    with own_ray():
        start_ray(2)
        yield ray
        POOL.close(60)
        ray.shutdown()


@pytest.fixture
def board(ray):
    return ray.remote(num_cpus=0)(ProgressBoard).remote()


def workers():
    """The processes that train."""
    return {p for p in descendants(os.getpid()) if "RayTrainWorker" in title(p)}


def test_same_bytes_alone_and_first_and_third_in_a_warm_worker(ray, smoke, tmp_path):
    trainings = warm_kit.Trainings(ray, smoke, tmp_path, images=128)
    alone = trainings.train("alone", keep_warm=False)
    first = trainings.train("first")
    assert trainings.train("second", seed=7) != first
    there = workers()
    third = trainings.train("third")
    assert alone == first == third
    assert len(there) == 1 and workers() == there


@pytest.mark.soak
def test_a_worker_killed_amid_a_job_and_the_bytes_of_a_training_in_peace(ray, smoke, tmp_path):
    """The job continues from its checkpoint, in a worker that then takes the next one."""
    trainings = warm_kit.Trainings(ray, smoke, tmp_path)
    undisturbed = trainings.train("undisturbed")
    [before] = workers()
    trainings.said()
    killed = in_thread(trainings.train, "killed")
    eventually(lambda: trainings.saved("killed") >= 128 or killed.done())
    kill(before)
    assert killed.result() == undisturbed
    lost, continues = trainings.said()[-2:]
    assert "its process died (preemption); retrying from " in lost
    assert continues.startswith("continues at ") and continues != "continues at 0 images"
    [after] = workers()
    assert after != before
    assert trainings.train("next") == undisturbed and workers() == {after}


@pytest.mark.soak
def test_a_job_that_fails_is_told_as_one_of_a_worker_of_its_own(ray, board, tmp_path):
    """Its worker is not used again; SIGTERM, a bug and a death are retried in a new one."""
    ctx = warm_kit.bare(board, tmp_path)

    def attempt(fate):
        return warm_kit.do(ctx, warm_kit.fail, fate=fate, folder=str(tmp_path))["pid"]

    with pytest.raises(ValueError, match=r"^batch 3 is not a multiple of 2; write 4$"):
        attempt("mistake")
    pids = [attempt("SIGTERM"), attempt("SIGKILL"), attempt("bug")]
    assert len(set(pids)) == 3
    assert warm_kit.do(ctx, warm_kit.process_of)["pid"] == pids[-1]
    said = [row["message"] for _, row in ray.get(board.drain.remote())]
    assert [m.split("; ")[0] for m in said] == [
        "rank 0: SIGTERM (preemption)",
        "rank 0: its process died (preemption)",
        "rank 0: KeyError: 'no such tensor' (bug)",
    ]


@pytest.mark.soak
def test_a_request_to_stop_one_node_reaches_its_job_alone(ray, board, tmp_path):
    one, other = (warm_kit.bare(board, tmp_path, f"train/base/{n}") for n in ("E0_0", "E1_0"))
    warm_kit.do(other, warm_kit.process_of)
    asked = in_thread(lambda: warm_kit.do(one, warm_kit.fail, fate="asked", folder=str(tmp_path)))
    eventually((tmp_path / "asked.runs").exists)
    ray.get(board.stop.remote("it exceeded its `max_hours:`", one.node))
    with pytest.raises(Preempted, match="it exceeded its `max_hours:`"):
        asked.result()
    assert warm_kit.do(other, warm_kit.process_of)["pid"]


@pytest.mark.soak
def test_an_idle_worker_that_gets_sigterm_leaves_and_another_takes_its_jobs(ray, board, tmp_path):
    ctx = warm_kit.bare(board, tmp_path)
    idle = warm_kit.do(ctx, warm_kit.process_of)["pid"]
    os.kill(idle, signal.SIGTERM)
    eventually(lambda: not is_alive(idle) or "RayTrainWorker" not in title(idle))
    assert warm_kit.do(ctx, warm_kit.process_of)["pid"] != idle


def test_the_pool_leaves_no_worker_and_no_file(ray, board, tmp_path):
    warm_kit.do(warm_kit.bare(board, tmp_path), warm_kit.process_of)
    assert workers()
    POOL.close(60)
    eventually(lambda: not workers())
    assert not list(Path(tmp_path).glob("ray-train/*"))


@pytest.mark.soak
def test_no_worker_stays_behind_a_driver_that_is_killed(tmp_path):
    """On a cluster, which outlives the driver."""
    from ray.cluster_utils import Cluster

    place = tempfile.mkdtemp(dir="/tmp")  # sockets need a short path
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "temp_dir": place})
    paths = os.pathsep.join([KITS, *sys.path])
    try:
        driver = subprocess.Popen(
            [sys.executable, warm_kit.__file__, tmp_path],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(RAY_ADDRESS=cluster.address, PYTHONPATH=paths),
        )
        idle = int(driver.stdout.readline().removeprefix("idle: "))
        assert "RayTrainWorker" in title(idle)
        driver.kill()
        driver.wait()
        eventually(lambda: not is_alive(idle))
    finally:
        cluster.shutdown()
