"""Whole smoke pipelines under random SIGKILLs, twenty of them and more. Run by `make soak`."""

import json
import os
import random
import re
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from bucket_kit import unclocked
from kit import (
    PATIENCE_S,
    SMOKE,
    SPECS,
    Driver,
    descendants,
    kill,
    shards_of,
    title,
    versions,
    wait_for_the_dead,
)

KILLS = int(os.environ.get("EDIFFI_SOAK_KILLS", "20"))
SEED = int(os.environ.get("EDIFFI_SOAK_SEED", "0"))
LONGEST_S = 45.0  # from the first node's start to a kill


def victim(running: Driver, rng: random.Random) -> tuple[str, list[int]]:
    """The driver, one of Ray's workers, or all at once as when a pod dies."""
    workers = running.workers()
    choice = rng.choice(["driver", "worker", "worker", "pod"])
    if choice == "worker" and workers:
        chosen = rng.choice(workers)
        return title(chosen), [chosen]
    return (
        (choice, [running.pid, *sorted(running.look())])
        if choice == "pod"
        else ("driver", [running.pid])
    )


def disturb(running: Driver, rng: random.Random) -> int:
    """Kills at random moments until the driver has ended, one way or another; → how many."""
    kills, early = 0, rng.random() < 0.2
    while running.process.poll() is None:
        begun = time.monotonic()
        while not early and " started" not in running.text() and running.process.poll() is None:
            assert time.monotonic() - begun < PATIENCE_S, running.text()
            time.sleep(0.1)
        until = time.monotonic() + rng.uniform(0, LONGEST_S)
        while time.monotonic() < until and running.process.poll() is None:
            time.sleep(0.1)
            running.look()
        if running.process.poll() is not None:
            break
        what, pids = victim(running, rng)
        print(f"{time.strftime('%H:%M:%S')} kill {kills + 1} of this driver: {what}", flush=True)
        kill(*pids)
        kills += 1
        if running.pid in pids:
            running.process.wait()
    return kills


@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
def test_random_kills_change_no_byte_and_leave_nothing(smoke, tmp_path):
    rng, kills, pipelines, seen = random.Random(SEED), 0, 0, set()
    while kills < KILLS:
        store = tmp_path / f"store{pipelines}"
        code, attempts = None, 0
        while code != 0:
            attempts += 1
            assert attempts <= 5 * KILLS, "no end in sight"
            running = Driver(SMOKE, store, tmp_path / f"log-{pipelines}-{attempts}")
            try:
                kills += disturb(running, rng)
                code = running.finish()
            finally:
                seen |= running.seen
                kill(*({running.pid} if running.process.poll() is None else ()))
            print(
                f"pipeline {pipelines}, attempt {attempts}: exit {code}, {kills} kills", flush=True
            )
        pipelines += 1
        for expert in ("E0_0", "E1_1", "E1_0", "single"):
            [here] = store.glob(f"nodes/train/base/{expert}-*")
            for file in ("ema.safetensors", "raw.safetensors"):
                undisturbed = smoke.folder(f"train/base/{expert}") / file
                assert (here / file).read_bytes() == undisturbed.read_bytes(), (expert, file)
        for shard in (s for version in versions(smoke.store) for s in shards_of(version)):
            assert (store / shard).read_bytes() == (smoke.store / shard).read_bytes(), shard
        assert [*store.rglob(".*.tmp"), *store.glob("ray-train")] == []
    wait_for_the_dead(seen)
    assert not {p for p in descendants(os.getpid()) if "ray" in title(p)}


# -- the whole demo ------------------------------------------------------------------------------

DEMO = SPECS / "demo.yaml"
LONG_S = 6 * 3600.0  # ends a wait that would never end
APART_S = 120.0  # kills are at most, so that a run gets on between two
CALM = os.environ.get("EDIFFI_SOAK_CALM")
"""The store of a `make demo` that nobody disturbed; without it the test makes one."""

OWN = ("history.jsonl", "checkpoint.json", "stats.json", "dataset.parquet", "ensemble.json")
"""Files that say when something was done, or in which store."""


@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
def test_kills_of_the_demos_driver_change_nothing(tmp_path):
    """Twenty, each followed by the same command; beside a run that nobody disturbed."""
    calm = Path(CALM) if CALM else tmp_path / "calm"
    if not CALM:
        undisturbed = Driver(DEMO, calm, tmp_path / "calm.log")
        assert undisturbed.finish(LONG_S) == 0, undisturbed.text()
    rng, kills, turn, seen = random.Random(SEED), 0, 0, set[int]()
    while kills < KILLS:
        turn += 1
        store, said, code = tmp_path / f"store{turn}", "", None
        while code != 0:
            running = Driver(DEMO, store, tmp_path / f"log-{turn}-{kills}")
            until = time.monotonic() + rng.uniform(3, APART_S)
            while time.monotonic() < until and running.process.poll() is None:
                time.sleep(0.1)
                running.look()
            if running.process.poll() is None:
                kill(running.pid)
                kills += 1
                print(f"{time.strftime('%H:%M:%S')} kill {kills} of the demo's driver", flush=True)
            code = running.finish(LONG_S)
            said += running.text()
            seen |= running.seen
        assert_equal(calm, store)
        assert_recorded(store)
        done = re.findall(r"\] (train/\S+) done in", said)
        assert len(done) == len(set(done)), "a node was trained twice"
    wait_for_the_dead(seen)


def assert_equal(calm, store):
    """All that determines pictures, and all that was measured; and who is champion."""
    nodes = {f.parent.relative_to(calm): f for f in calm.glob("nodes/**/manifest.json")}
    assert {f.parent.relative_to(store) for f in store.glob("nodes/**/manifest.json")} == set(nodes)
    for folder, file in nodes.items():
        mine, theirs = (json.loads(f.read_text()) for f in (store / folder / file.name, file))
        assert unclocked(mine["metrics"]) == unclocked(theirs["metrics"]), folder
        for name, entry in theirs["files"].items():
            if not name.endswith(OWN):
                assert mine["files"][name] == entry, (folder, name)
    for version in versions(calm):
        tables = [
            pq.read_table(s / version.relative_to(calm)).drop("source") for s in (calm, store)
        ]
        assert tables[0].equals(tables[1]), version
    books = [json.loads((s / "registry/emoji-scenes.json").read_text()) for s in (calm, store)]
    assert books[0]["champion"]["fingerprint"] == books[1]["champion"]["fingerprint"]
    assert [len(book["history"]) for book in books] == [2, 2]


def assert_recorded(store):
    """No run is left RUNNING, and every node has one that ended well."""
    from pipelines.lineage import quiet_mlflow

    client = quiet_mlflow().MlflowClient(f"sqlite:///{store}/mlflow.db")
    experiment = client.get_experiment_by_name("emoji-scenes").experiment_id
    runs = client.search_runs([experiment], max_results=1000)
    assert {r.info.status for r in runs} == {"FINISHED"}
    nodes = [r.data.tags["ediffi.node"] for r in runs if "ediffi.node" in r.data.tags]
    manifests = list(store.glob("nodes/**/manifest.json"))
    assert len(nodes) == len(set(nodes)) == len(manifests)
    aliases = client.get_registered_model("emoji-scenes").aliases
    assert set(aliases) >= {"champion", "candidate"}
