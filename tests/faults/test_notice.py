"""Workers that are asked to leave, are lost, late or wrong: on Ray, with no training in them."""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import mlflow
import notice_kit
import pytest
from kit import PATIENCE_S, SMOKE, call, descendants, driver, is_alive, own_ray, strict_json, title

from pipelines.executor.ray_cluster import start_ray
from pipelines.runs.context import Context, ProgressBoard
from pipelines.runs.threads import in_thread
from pipelines.steps.train import train
from pipelines.store.artifacts import Store
from pipelines.training.preemption import Preempted

pytestmark = pytest.mark.slow

KITS = str(Path(notice_kit.__file__).parent)

RETRIES = {"preemptions": 2, "machines": 9, "failures": 1, "bugs": 1, "backoff_s": 0.1}
WORKERS = {"gpus": 0, "retries": RETRIES}


@pytest.fixture(scope="module")
def environment():
    import ray

    polled = {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.2"}
    with own_ray(RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="1", **polled):
        yield
        ray.shutdown()


@pytest.fixture
def ray(environment):
    """A cluster for all tests, or for those up to one that shuts it down."""
    import ray

    if not ray.is_initialized():
        start_ray(2)
    return ray


@pytest.fixture
def node(ray, tmp_path):
    return Node(ray, tmp_path)


def eventually(reached):
    """Waits for something true; → that."""
    until = time.monotonic() + PATIENCE_S
    while not (found := reached()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


class Node:
    """A training node of two workers, without training."""

    def __init__(self, ray, root):
        self.ray, self.root = ray, root
        self.board = ray.remote(num_cpus=0)(ProgressBoard).remote()

    def train(self, *fates, workers=2, timeout_s=60, labels=None):
        """An attempt for each fate, and one that ends well."""
        how = {"count": workers, "timeout_s": timeout_s, "labels": labels or {}}
        ctx = Context(
            node="train/base/E0_0",
            fingerprint="f",
            store=Store.at(str(self.root)),
            folder="nodes/train/base/E0_0",
            cpus=2,
            runtime={"workers": {**WORKERS, **how}},
            manifests={},
            board=self.board,
        )
        config = {"fates": fates, "folder": str(self.root / "attempts")}
        return train(ctx, notice_kit.worker, config)

    def said(self):
        return [row["message"] for _, row in self.ray.get(self.board.drain.remote())]

    def pids(self):
        return {int(f.read_text()) for f in (self.root / "attempts").iterdir()}


@pytest.mark.soak
def test_workers_that_leave_are_lost_late_or_wrong_are_started_again_but_not_for_a_mistake(node):
    """Each is told from the others, the rank is named, and no process of any attempt is left."""
    fates = ("SIGTERM", "SIGKILL", "late", "bug", "mistake")
    with pytest.raises(ValueError, match=r"^batch 3 is not a multiple of 2; write 4$"):
        node.train(*fates, timeout_s=10)
    left, lost, late, wrong = node.said()
    assert left.startswith("rank 1: SIGTERM (preemption); retrying from 0 images in ")
    assert left.endswith("attempt 1 of 2")
    # Ray may hear of what rank 0 lost before it sees that rank 1 has died.
    seen = (
        "rank 1: its process died (preemption); ",
        "rank 0: lost connection to another rank (",
        "training: its process died (preemption); ",
    )
    assert lost.startswith(seen) and " (preemption); " in lost
    assert lost.endswith("attempt 2 of 2")
    assert "(stalled); " in late and late.endswith("attempt 1 of 1")
    assert wrong.startswith("rank 1: KeyError: 'no such tensor' (bug); ")
    eventually(lambda: not [p for p in node.pids() if is_alive(p) and "ray::" in title(p)])


@pytest.mark.soak
def test_a_driver_that_trains_often_leaves_no_file_open_and_no_shared_memory(node):
    def held():
        shared = os.statvfs("/dev/shm")
        used = (shared.f_blocks - shared.f_bfree) * shared.f_frsize
        return len(list(Path("/proc/self/fd").iterdir())), used

    node.train("SIGTERM", "SIGKILL")  # opens what stays open: Ray's connections and logs
    files, used = held()
    for _ in range(5):
        shutil.rmtree(node.root / "attempts")
        node.train("SIGTERM", "SIGKILL")
    eventually(lambda: held()[0] <= files)
    assert held()[1] <= used + 2**20


@pytest.mark.soak
def test_workers_start_where_their_labels_say_and_wait_for_such_a_machine(node, monkeypatch):
    here = node.ray.get_runtime_context().get_node_id()
    done = node.train(workers=1, labels={"ray.io/node-id": here})
    assert done == {"attempts": 1, "backend": "gloo"}
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    elsewhere = in_thread(lambda: node.train(labels={"ray.io/node-id": f"!{here}"}))
    [said, *_] = eventually(node.said)
    assert said.startswith("training: the cluster has no room for 2 such workers yet")
    assert " (waiting for machines); " in said and said.endswith("attempt 1 of 9")
    node.ray.get(node.board.stop.remote("the test is over"))
    with pytest.raises(Preempted, match="the test is over"):
        elsewhere.result(PATIENCE_S)


def test_a_node_that_ray_will_take_away_is_left(node):
    """The last of those on Ray here: on the drained node nothing can be started again."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    def drain():
        preemption, deadline = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), 600
        client = GcsClient(address=node.ray.get_runtime_context().gcs_address)
        here = node.ray.get_runtime_context().get_node_id()
        at = int((time.time() + deadline) * 1000)
        assert client.drain_node(here, preemption, "a spot instance", at) == (True, "")

    def watchers():
        return {p for p in descendants(os.getpid()) if "PreemptionWatcher" in title(p)}

    before = watchers()  # of tests before this one
    end = in_thread(lambda: node.train("asked", workers=1))
    eventually(lambda: list(node.root.glob("attempts/*")))
    # Ray's watcher, too, is a process that a drained node would not start.
    eventually(lambda: watchers() - before)
    try:
        drain()
        [said] = eventually(node.said)
        node.ray.get(node.board.stop.remote("not this one", "train/base/E1_1"))
        node.ray.get(node.board.stop.remote("the test is over", "train/base/E0_0"))
        with pytest.raises(Preempted, match="the test is over"):
            end.result(PATIENCE_S)
    finally:
        node.ray.shutdown()
    assert said.startswith("rank 0: node of rank [0] is being drained (preemption); ")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(None, 3, marks=pytest.mark.soak),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.soak),
    ],
)
def test_a_driver_that_is_told_to_stop(smoke, tmp_path, capsys, number, code):
    """It has its workers save, says so, and the same command would go on; without a signal it is
    cancelled, and the same command would begin a new run."""
    word, end = (
        ("interrupted", "run the same command") if number else ("cancelled", "finished nodes")
    )
    store = smoke.copy(tmp_path / "store", "train/base/E1_1")
    program = (sys.executable, notice_kit.__file__)
    paths = os.pathsep.join([KITS, os.environ.get("PYTHONPATH", "")])
    with driver(SMOKE, store, tmp_path / "log", program, PYTHONPATH=paths) as running:
        running.until(lambda: "E1_1 is at work" in running.text(), "a worker at work")
        running.look()
        if number:
            running.process.send_signal(number)
        else:
            assert call("cancel", SMOKE, "--storage", store) == 0
        assert running.finish() == code, running.text()
        text = running.text()
        why = f"the driver received {number.name}" if number else "cancelled by "
        assert why in text and " s for 1 training node to save and exit" in text
        assert "train/base/E1_1 has saved" in text and "Traceback" not in text
        assert f"{word}; {end} " in text.splitlines()[-1]
    capsys.readouterr()
    assert call("status", "--json", "--storage", store) == 0
    status = strict_json(capsys.readouterr().out)
    assert status["state"].startswith(word)
    assert status["nodes"]["train/base/E1_1"]["state"] == word
    if number:
        return
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{store}/mlflow.db")
    experiment = client.get_experiment_by_name("smoke").experiment_id
    runs = client.search_runs([experiment], max_results=1000)
    assert {r.info.status for r in runs if r.data.tags["ediffi.state"] != "reused"} == {"KILLED"}
