"""A pipeline's results in a bucket, compared with those of the shared smoke run on a disk."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
from kit import spec_with

from pipelines.store.artifacts import Store, sha256


def folder_of(store: Store, node: str) -> str:
    [found] = {
        f"nodes/{p.rpartition('/')[0]}"
        for p in store.files("nodes")
        if p.startswith(f"{node}-") and p.endswith("/manifest.json")
    }
    return found


def nodes_of(store: Store) -> set[str]:
    there = store.files("nodes")
    return {p.rpartition("/")[0].rpartition("-")[0] for p in there if p.endswith("/manifest.json")}


def timeless(history: list[dict]) -> list[tuple]:
    """A curve without what a clock measured."""
    return [(row["images"], unclocked(row["metrics"])) for row in history]


def unclocked(metrics: dict[str, float]) -> dict[str, float]:
    """Without those that a clock or the machine measured, and what a kill left to be done."""
    clocked = {"images_per_s", "data_wait", "memory_gb", "tflops", "mfu"}
    clocked |= {"encoded_now", "copied_now"}
    return {
        k: v
        for k, v in metrics.items()
        if k.removeprefix("final/") not in clocked and not k.startswith("system/")
    }


def told(name: str, data: bytes):
    """What a node's file says; without the addresses and times that are in a few of them."""
    if name == "dataset.parquet":
        table = pq.read_table(io.BytesIO(data))
        return table.schema.metadata, table.drop_columns("source").to_pylist()
    name = name.rpartition("/")[2]
    if name == "history.jsonl":
        return timeless([json.loads(line) for line in data.splitlines()])
    if name == "checkpoint.json":  # of a node's last state, whose curve was clocked
        record = json.loads(data)
        files = {k: v for k, v in record["files"].items() if k != "history.jsonl"}
        return {**record, "files": files, "sha256": None}
    if name == "stats.json":
        return {k: v for k, v in json.loads(data).items() if k != "seconds"}
    if name == "ensemble.json":
        return {k: v for k, v in json.loads(data).items() if k != "store"}
    return sha256(data)


def assert_same(node: str, bucket: Store, disk: Store, other: str = "") -> None:
    """A node in both stores has the same metrics, and files of the same bytes.

    Args:
        other: the node on the disk, if it is another there, which may have been measured by more.
    """
    mine, theirs = folder_of(bucket, node), folder_of(disk, other or node)
    if other:
        here, there = bucket.manifest(mine), disk.manifest(theirs)
        assert here["metrics"] and here["metrics"].items() <= there["metrics"].items(), node
        assert_same_files(mine, bucket, disk, theirs)
    else:
        assert_same_results(mine, bucket, disk)


def assert_same_results(folder: str, here: Store, there: Store) -> None:
    """A folder of results in both stores has the same fingerprint, metrics and files."""
    mine, theirs = here.manifest(folder), there.manifest(folder)
    assert unclocked(mine["metrics"]) == unclocked(theirs["metrics"]), folder
    assert mine["fingerprint"] == theirs["fingerprint"], folder
    assert_same_files(folder, here, there, folder)


def assert_same_files(mine: str, here: Store, there: Store, theirs: str) -> None:
    """The files are what the manifest says, and say the same in both stores."""
    files, others = here.manifest(mine)["files"], there.manifest(theirs)["files"]
    assert files.keys() == others.keys(), mine
    for name, entry in files.items():
        data = here.read(f"{mine}/{name}")
        assert sha256(data) == entry["sha256"], f"{mine}/{name}"
        if entry["sha256"] != others[name]["sha256"]:
            assert told(name, data) == told(name, there.read(f"{theirs}/{name}")), f"{mine}/{name}"


def shards_of(store: Store, node: str) -> list[tuple[str, int, str]]:
    """Name, rows and sha256 of the shards of a data set, which are what the version says."""
    table = pq.read_table(io.BytesIO(store.read(f"{folder_of(store, node)}/dataset.parquet")))
    rows = table.to_pylist()
    assert all(sha256(store.read(r["path"])) == r["sha256"] for r in rows), node
    return [(r["name"], r["rows"], r["sha256"]) for r in rows]


def spec_at(to: Path, data: str, **more) -> Path:
    """Smoke with a root and one child; its validation data are the user's."""

    def cut(raw):
        base = raw["stages"]["base"]
        del base["single"], base["experts"]["E1_0"]
        base["ensemble"] = ["E0_0"]
        raw["data"]["validation"] = {"path": data}
        raw |= more

    return spec_with(to, cut)
