"""A pipeline on a cluster that Ray's autoscaler makes from no worker node, group by group."""

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


@pytest.mark.timeout(3600)
def test_groups_start_when_needed_and_a_dead_node_is_replaced(smoke, tmp_path):
    spec = spec_with(tmp_path / "spec.yaml", on_groups)
    store = tmp_path / "store"
    seen: dict[str, str] = {}
    with autoscaler.running(tmp_path, {"big": 3, "small": 2}) as cluster:
        assert cluster.groups() == {}
        begun = time.monotonic()
        with driver(spec, store, tmp_path / "log", RAY_ADDRESS=cluster.address) as running:

            def group_is_training(group):
                now = cluster.groups()
                for node in now.items() - seen.items():
                    print(f"{time.monotonic() - begun:.0f} s: {node}", flush=True)
                seen.update(now)
                return [node for node, its in now.items() if its == group]

            running.until(lambda: "train/base/E0_0 started" in running.text(), "training")
            [first] = running.until(lambda: group_is_training("big"), "a node of the base")
            checkpoint = store / "ray-train"
            running.until(lambda: list(checkpoint.rglob("checkpoint*")), "a checkpoint")
            cluster.kill_node(first)
            print(f"{time.monotonic() - begun:.0f} s: killed {first}", flush=True)

            def replaced():
                return [node for node in group_is_training("big") if node != first]

            running.until(replaced, "another node of the base")
            running.until(lambda: group_is_training("small"), "a node of super-resolution")
            assert running.finish() == 0, running.text()
        print(running.text(), flush=True)
        assert sorted(seen.values()) == ["big", "big", "small"]
        ended = time.monotonic()
        while left := cluster.groups():
            assert time.monotonic() - ended < PATIENCE_S, left
            time.sleep(1)
        print(f"no node left {time.monotonic() - ended:.0f} s after the end", flush=True)

    made, other = Store.at(str(store)), Store.at(str(smoke.store))
    for node in ("train/base/E0_0", "train/base/E1_1", "train/base/E1_0", "train/sr32/E0_0"):
        assert_same(node, made, other)
