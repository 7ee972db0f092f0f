"""A pipeline on a cluster that Ray's autoscaler makes from no worker node, group by group."""

import threading
import time

import autoscaler
import pytest
from bucket_kit import assert_same
from kit import PATIENCE_S, driver, spec_with

from pipelines.store.artifacts import Store

pytestmark = pytest.mark.soak

STAGES = {"base": "big", "sr32": "small"}


def on_groups(raw):
    for stage, group in STAGES.items():
        raw["stages"][stage]["workers"] = {"labels": {"group": group}}


class Watch:
    """Notes each node of a cluster beside its head, with when it was first and last seen."""

    def __init__(self, cluster):
        self.cluster, self.seen, self.done = cluster, {}, threading.Event()
        self.thread = threading.Thread(target=self.work)

    def work(self):
        begun = time.monotonic()
        while not self.done.wait(0.5):
            now_s = time.monotonic() - begun
            for node, group in self.cluster.groups().items():
                first_s = self.seen[node][1] if node in self.seen else now_s
                self.seen[node] = (group, first_s, now_s)

    def nodes(self, group):
        return [node for node, (its, *_) in self.seen.items() if its == group]

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()


@pytest.mark.timeout(3600)
def test_groups_start_when_needed_and_a_dead_node_is_replaced(smoke, tmp_path):
    spec, store = spec_with(tmp_path / "spec.yaml", on_groups), tmp_path / "store"
    with autoscaler.running(tmp_path, {"big": 3, "small": 2}) as cluster:
        assert cluster.groups() == {}
        address = {"RAY_ADDRESS": cluster.address}
        with Watch(cluster) as watch, driver(spec, store, tmp_path / "log", **address) as running:
            [first] = running.until(lambda: watch.nodes("big"), "a node for the base")
            checkpoints = "nodes/train/base/*/checkpoints/*"
            running.until(lambda: list(store.glob(checkpoints)), "a checkpoint of the base")
            cluster.kill_node(first)
            assert running.finish() == 0, running.text()
            ended = time.monotonic()
            while left := cluster.groups():
                assert time.monotonic() - ended < PATIENCE_S, left
                time.sleep(1)
        print(running.text())
        for node, (group, first_s, last_s) in watch.seen.items():
            print(f"{group}: {first_s:.0f} to {last_s:.0f} s, {node}")
    assert len(watch.nodes("big")) > 1
    assert watch.nodes("small")
    made, other = Store.at(str(store)), Store.at(str(smoke.store))
    for node in ("train/base/E0_0", "train/base/E1_1", "train/base/E1_0", "train/sr32/E0_0"):
        assert_same(node, made, other)
