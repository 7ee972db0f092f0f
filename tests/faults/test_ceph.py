"""A store in Ceph: an S3 server that races, restarts and runs full as real ones do."""

import os
import random
import shutil
import tempfile
import threading
import time
from pathlib import Path

import ceph as kit
import pytest
from bucket_kit import assert_same, spec_at
from kit import driver, ediffi
from s3 import AWS_VARIABLES, forget_connections

from pipelines.store.artifacts import Store
from pipelines.store.compare_and_swap import Snapshot, compare_and_swap, read_snapshot

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(bool(kit.missing()), reason=f"not installed: {', '.join(kit.missing())}"),
]

SEED = int(os.environ.get("EDIFFI_SOAK_SEED", "0"))
OUTAGES = 6
LONGEST_OUTAGE_S = 8.0


@pytest.fixture(scope="module")
def cluster():
    folder = Path(tempfile.mkdtemp(prefix="ceph"))  # short, as pytest's own may be too long
    running = kit.Ceph(folder)
    yield running
    running.stop()
    shutil.rmtree(folder)


@pytest.fixture
def ceph(cluster, monkeypatch, tmp_path):
    """The cluster with a bucket ``bucket``, which this process's environment leads to."""
    for name in AWS_VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    forget_connections()
    fs = Store.at("s3://bucket/a").fs
    if not fs.exists("bucket"):
        fs.mkdir("bucket")
    yield cluster
    forget_connections()


def winner(store: Store, path: str, seen: Snapshot, words: str) -> bytes:
    """What the one of six writers at the same moment wrote whose write was accepted."""
    barrier, won = threading.Barrier(6), []

    def write(i):
        barrier.wait()
        data = f"{words} {i}".encode()
        if compare_and_swap(store, path, seen, data):
            won.append(data)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [data] = won
    return data


def test_of_writers_at_the_same_moment_one_wins(ceph):
    store = Store.at("s3://bucket/races")
    for turn in range(20):
        path = f"file/{turn}"
        first = winner(store, path, Snapshot(), "created")
        seen = read_snapshot(store, path)
        assert seen.data == first
        assert winner(store, path, seen, "changed") == store.read(path)


def test_the_doctor_finds_nothing_amiss(ceph, tmp_path):
    spec = spec_at(tmp_path / "a.yaml", "s3://bucket/nothing")
    said = ediffi("doctor", spec, "--storage", "s3://bucket/store").stdout
    assert "conditional writes work" in said, said


def data_and_spec(smoke, folder, name):
    [rows] = smoke.folder("data/validation").glob("*.parquet")
    Store.at(f"s3://bucket/{name}/data").write(rows.name, rows.read_bytes())
    return spec_at(folder / f"{name}.yaml", f"s3://bucket/{name}/data")


def assert_finished(bucket, disk):
    trained = {"train/base/E0_0", "train/base/E1_1", "train/sr32/E0_0"}
    for node in {"data/train", "encoders/tiny", "embed/train"} | trained:
        assert_same(node, bucket, disk)


@pytest.mark.timeout(3600)
def test_restarts_change_no_byte(smoke, ceph, tmp_path):
    """The gateway or the disk is killed at random moments, and comes back after some seconds."""
    rng, outages = random.Random(SEED), []
    bucket = Store.at("s3://bucket/restarts/store")
    spec = data_and_spec(smoke, tmp_path, "restarts")
    with driver(spec, bucket.root, tmp_path / "log") as running:
        running.until(lambda: " started" in running.text(), "its first node")
        while running.process.poll() is None and len(outages) < OUTAGES:
            time.sleep(rng.uniform(1, 15))
            if running.process.poll() is not None:
                break
            name, length_s = rng.choice(["radosgw", "ceph-osd"]), rng.uniform(0, LONGEST_OUTAGE_S)
            ceph.kill(name)
            time.sleep(length_s)
            ceph.start(name)
            outages.append(name)
            print(f"{name} was away for {length_s:.1f} s", flush=True)
        assert running.finish() == 0, running.text()
    assert len(outages) > 2
    assert_finished(bucket, Store.at(str(smoke.store)))


@pytest.mark.timeout(3600)
def test_a_full_disk_loses_nothing(smoke, ceph, tmp_path):
    """Writes to a full disk wait for room; past a quota they fail, and the same command goes on."""
    bucket = Store.at("s3://bucket/full/store")
    spec = data_and_spec(smoke, tmp_path, "full")
    with driver(spec, bucket.root, tmp_path / "log") as running:
        running.until(lambda: " started" in running.text(), "its first node")
        ceph.full(True)
        time.sleep(15)
        assert running.process.poll() is None, running.text()
        ceph.full(False)
        running.until(lambda: bucket.files("nodes/encoders"), "a node after it was full")
        ceph.quota(1)
        assert running.finish() != 0, running.text()
        print(running.text(), flush=True)
    ceph.quota(None)
    again = ediffi("run", spec, "--storage", bucket.root)
    assert again.returncode == 0, again.stdout + again.stderr
    assert_finished(bucket, Store.at(str(smoke.store)))
