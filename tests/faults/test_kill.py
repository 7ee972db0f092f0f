"""SIGKILL at awkward moments: the same command goes on, and ends in the same bytes."""

import json

import pyarrow.parquet as pq
import pytest
from kit import (
    Driver,
    call,
    driver,
    kill,
    shards_of,
    spec_with,
    strict_json,
    title,
    wait_for_the_dead,
)

EXPERTS = ("E0_0", "E1_1", "E1_0")


@pytest.fixture
def spec(tmp_path):
    """Smoke, saving and validating after every step: slower, and not one byte different."""

    def change(raw):
        raw["stages"]["base"]["cadence"] = {
            "checkpoint_images": 16,
            "validate_images": 16,
            "validate_draws": 256,
        }

    return spec_with(tmp_path / "smoke.yaml", change)


def folder_of(store, node):
    """Of a node that may not have begun yet."""
    return next(iter(store.glob(f"nodes/{node}-*")), store / "nothing")


def checkpoints(store, expert):
    return sorted(folder_of(store, f"train/base/{expert}").glob("checkpoints/*/checkpoint.json"))


def is_done(store, node):
    return (folder_of(store, node) / "manifest.json").exists()


def left_over(store):
    """Temporary files, and scratch of Ray Train."""
    return [*store.rglob(".*.tmp"), *store.glob(".writable*"), *store.glob("ray-train")]


def assert_nothing_leaks(store, *drivers: Driver):
    assert left_over(store) == []
    wait_for_the_dead({p for d in drivers for p in d.seen})


def finished(store, shards):
    return [s for s in shards if (store / s).with_suffix(".json").exists()]


def killed_while_it_embeds(smoke, spec, tmp_path, *without):
    """A store in which a pod was killed between two shards; → it, and the dead driver."""
    shards = shards_of(smoke.folder("embed/train") / "dataset.parquet")
    assert len(shards) == 4
    for attempt in range(5):
        store = smoke.copy(tmp_path / f"store{attempt}", "embed/train", *without)
        with driver(spec, store, tmp_path / "log1") as first:
            first.until(lambda: finished(store, shards), "a shard")  # noqa: B023
            first.kill(workers=True)
        if 1 <= len(finished(store, shards)) < 4:
            return store, first
    raise AssertionError("the kill never came between two shards")


def check_shards(smoke, store, before):
    """What was finished was not embedded again; all became what they are undisturbed."""
    node = "embed/train"
    assert {f: stamp(f) for f in before} == before
    manifest = json.loads((folder_of(store, node) / "manifest.json").read_text())
    assert manifest["metrics"]["encoded_now"] == 64 - 16 * len(before) // 2
    for shard in shards_of(smoke.folder(node) / "dataset.parquet"):
        assert (store / shard).read_bytes() == (smoke.store / shard).read_bytes(), shard
    here, there = (
        pq.read_table(folder_of(at, node) / "dataset.parquet").drop_columns("source")  # its address
        for at in (store, smoke.store)
    )
    assert here.equals(there, check_metadata=True)


def stamp(file):
    return file.stat().st_ino, file.stat().st_mtime_ns


@pytest.mark.soak
def test_a_pod_killed_while_it_embeds(smoke, spec, tmp_path):
    """What test_embed_kill.py does to the node alone, with the whole command."""
    trained = [f"train/base/{e}" for e in EXPERTS]
    store, first = killed_while_it_embeds(smoke, spec, tmp_path, *trained)
    done = finished(store, shards_of(smoke.folder("embed/train") / "dataset.parquet"))
    before = {f: stamp(f) for s in done for f in (store / s, (store / s).with_suffix(".json"))}
    with driver(spec, store, tmp_path / "log2") as second:
        assert second.finish() == 0, second.text()
    assert ", attempt 2: " in second.text()
    check_shards(smoke, store, before)
    assert_nothing_leaks(store, first, second)


@pytest.mark.slow
def test_kills_while_it_trains_and_between_nodes(smoke, spec, tmp_path, capsys):
    """Of the driver while its workers live on, of a worker, of a pod, and of the actor of reports.

    E1_0 is as E1_1 is, and stays.
    """
    trained = ("E0_0", "E1_1")
    store = smoke.copy(tmp_path / "store", *(f"train/base/{e}" for e in trained))
    with driver(spec, store, tmp_path / "log1") as first:
        first.until(lambda: checkpoints(store, "E0_0"), "a checkpoint of E0_0")
        first.look()
        first.kill()

    # At once: the dead driver's workers may still be training, and write to the same node.
    with driver(spec, store, tmp_path / "log2") as second:
        text = second.until(
            lambda: "E0_0 continues at" in second.text() and second.text(), "resuming"
        )
        assert ", attempt 2: " in text
        seen = checkpoints(store, "E0_0")
        worker = second.until(
            lambda: (
                checkpoints(store, "E0_0") > seen
                and [p for p in second.look() if "RayTrainWorker" in title(p)]
            ),
            "a worker that has saved again",
        )
        kill(*worker)
        second.until(lambda: is_done(store, "train/base/E0_0"), "the end of E0_0")
        second.kill(workers=True)
        assert second.text().count("E0_0 continues at") == 2, second.text()
    assert not is_done(store, "train/base/E1_1")

    with driver(spec, store, tmp_path / "log3") as third:
        board = third.until(
            lambda: [p for p in third.look() if "ray::ProgressBoard" in title(p)],
            "the actor of reports",
        )
        kill(*board)
        assert third.finish() == 0, third.text()
    assert ", attempt 3: " in third.text() and "train/base/E0_0 reused" in third.text()
    for expert in trained:
        here, undisturbed = (folder_of(at, f"train/base/{expert}") for at in (store, smoke.store))
        for weights in ("ema", "raw"):
            file = f"{weights}.safetensors"
            assert (here / file).read_bytes() == (undisturbed / file).read_bytes(), expert
    rows = [
        json.loads(line)
        for line in (folder_of(store, "train/base/E0_0") / "history.jsonl").read_text().split("\n")
        if line
    ]
    validated = [r["images"] for r in rows if "val_loss" in r["metrics"]]
    assert validated == list(range(16, 257, 16)), "a curve with a gap, or a point twice"
    assert_nothing_leaks(store, first, second, third)

    capsys.readouterr()
    assert call("status", "--json", "--storage", store) == 0
    status = strict_json(capsys.readouterr().out)
    assert (status["state"], status["attempt"]) == ("done", 3)
    check_record(store)


def check_record(store):
    """The three attempts are one execution in MLflow, and no run is left RUNNING."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{store}/mlflow.db")
    experiment = client.get_experiment_by_name("smoke").experiment_id
    runs = client.search_runs([experiment], max_results=1000)
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert len([r for r in runs if "ediffi.node" not in r.data.tags]) == 1
    [root] = [r for r in runs if r.data.tags.get("ediffi.node") == "train/base/E0_0"]
    steps = {m.step for m in client.get_metric_history(root.info.run_id, "val_loss")}
    assert steps == set(range(16, 257, 16))
    assert "final/val_loss" in root.data.metrics  # though its driver died as soon as it was done
