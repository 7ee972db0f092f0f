"""A pipeline whose store and data are in a bucket that fails: the bytes of one on a disk."""

import io
import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from kit import SMOKE, ediffi
from s3 import KEY, SECRET

from pipelines.demo.make import write_parquet
from pipelines.store.artifacts import Store

pytestmark = pytest.mark.slow

EXPERTS = ("E0_0", "E1_1", "E1_0")
WEIGHTS = ("raw.safetensors", "ema.safetensors")
RATE = 0.05


def spec_at(to: Path, data: str, **more) -> Path:
    """Smoke, cut down to its first stage; its validation data are the user's."""
    raw = yaml.safe_load(SMOKE.read_text())
    base = raw["stages"]["base"]
    del base["single"]
    base["experts"] = {"E0_0": {"images": 64}, "E1_1": {"images": 32}, "E1_0": {"images": 32}}
    base["cadence"] |= {"checkpoint_images": 16, "validate_images": 64, "log_images": 16}
    base["sampling"]["steps"] = 2
    raw |= {
        "stages": {"base": base},
        "data": {
            "train": {"make": "digit-scenes", "rows": 64, "shards": 4},
            "validation": {"path": data},
        },
        "encoders": {"make": "tiny", "clip_images": 256},
        "evaluate": {"captions": 4},
        **more,
    }
    to.write_text(yaml.safe_dump(raw))
    return to


def folder_of(store: Store, node: str) -> str:
    [found] = {
        f"nodes/{p.rpartition('/')[0]}"
        for p in store.files("nodes")
        if p.startswith(f"{node}-") and p.endswith("/manifest.json")
    }
    return found


def files_of(store: Store, node: str) -> dict[str, str]:
    manifest = store.manifest(folder_of(store, node))
    return {name: entry["sha256"] for name, entry in manifest["files"].items()}


def shards_of(store: Store, node: str) -> list[tuple[str, int, str]]:
    data = store.read(f"{folder_of(store, node)}/dataset.parquet")
    table = pq.read_table(io.BytesIO(data))
    return [(r["name"], r["rows"], r["sha256"]) for r in table.to_pylist()]


@pytest.fixture
def home(s3, tmp_path):
    """Where the command, too, keeps what it keeps."""
    assert os.environ["HOME"] == str(tmp_path / "home")
    (tmp_path / "home").mkdir(exist_ok=True)
    return tmp_path / "home"


def test_a_bucket_that_fails_gives_the_bytes_of_a_disk(s3, home, tmp_path):
    data = tmp_path / "data"
    write_parquet(data, split="validation", count=64, shards=4, seed=1, quiet=True)
    disk, bucket = Store.at(str(tmp_path / "store")), Store.at("s3://bucket/store")
    in_s3 = Store.at("s3://bucket/data")
    in_s3.put_folder(data, "scenes")

    here = ediffi("run", spec_at(tmp_path / "disk.yaml", str(data)), "--storage", disk.root)
    assert here.returncode == 0, here.stdout + here.stderr

    # The spec alone leads there, past an environment that leads astray.
    settings = {"endpoint_url": s3.endpoint, "region": "us-east-1", "key": KEY, "secret": SECRET}
    spec = spec_at(tmp_path / "s3.yaml", "s3://bucket/data/scenes", s3=settings)
    astray = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "another",
        "AWS_SECRET_ACCESS_KEY": "another",
    }
    s3.faults.rate = RATE
    there = ediffi("run", spec, "--storage", bucket.root, **astray)
    assert there.returncode == 0, there.stdout + there.stderr
    again = ediffi("run", spec, "--storage", bucket.root, **astray, RAY_ADDRESS="127.0.0.1:9")
    s3.faults.rate = 0
    assert again.returncode == 0, again.stdout + again.stderr
    assert s3.faults.done.total() > 10, s3.faults
    assert there.stderr == ""

    for split in ("train", "validation"):
        assert shards_of(bucket, f"embed/{split}") == shards_of(disk, f"embed/{split}")
        assert len(shards_of(bucket, f"embed/{split}")) == 4
    assert files_of(bucket, "encoders/tiny") == files_of(disk, "encoders/tiny")
    for expert in EXPERTS:
        node = f"train/base/{expert}"
        mine, theirs = files_of(bucket, node), files_of(disk, node)
        for name in WEIGHTS:
            assert mine[name] == theirs[name], f"{node}/{name}"
        manifests = [s.manifest(folder_of(s, node)) for s in (bucket, disk)]
        assert len({m["fingerprint"] for m in manifests}) == 1
        assert len({m["metrics"]["val_loss"] for m in manifests}) == 1
    assert not [name for name in bucket.fs.find(bucket.full("ray-train")) if "." in name]

    # The record: on this machine, and it is said.
    assert "on this machine, as a bucket cannot hold it" in there.stdout
    [record] = home.glob(".local/share/ediffi/*/mlflow.db")
    assert f"sqlite:///{record}" in there.stdout

    # Of the secret, nothing anywhere; nor where a plan, a status or a tree is printed.
    told = [there.stdout, again.stdout]
    for verb in (["plan", spec, "--json"], ["plan", spec], ["status", spec], ["tree"]):
        shown = ediffi(*verb, "--storage", bucket.root)
        assert shown.returncode == 0, shown.stderr
        told += [shown.stdout, shown.stderr]
    assert not [text for text in told if SECRET in text or KEY in text]
    written = {f: bucket.read(f) for f in bucket.files("")}
    for root in (home, tmp_path / "store"):
        written |= {str(p): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    assert len(written) > 50
    for name, content in written.items():
        assert SECRET.encode() not in content, name
        assert KEY.encode() not in content, name
    execution = json.loads(bucket.read("executions/smoke.latest.json"))
    assert execution["id"].startswith("smoke-")


@pytest.mark.parametrize(
    ("storage", "change", "words"),
    [
        ("s3://no-such-bucket/store", {}, "there is no such bucket"),
        ("s3://bucket/store", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "127.0.0.1:9"),
        ("s3://bucket/store", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "credential"),
        ("s3://bucket/store", {"AWS_PROFILE": "nobody"}, "nobody"),
    ],
    ids=["bucket", "endpoint", "credentials", "profile"],
)
@pytest.mark.parametrize("verb", ["run", "plan"])
def test_what_cannot_work_is_one_line(s3, tmp_path, verb, storage, change, words):
    shown = ediffi(verb, SMOKE, "--storage", storage, **change)
    assert shown.returncode == 2, shown.stdout + shown.stderr
    [line] = shown.stderr.splitlines()
    assert line.startswith("ediffi: ")
    assert words in line
    assert SECRET not in line


def test_data_that_cannot_be_had_are_one_line(s3, tmp_path):
    for path, words in (
        ("s3://bucket/nothing", "data folder s3://bucket/nothing does not exist"),
        ("s3://no-such-bucket/data", "no such bucket"),
    ):
        shown = ediffi("plan", spec_at(tmp_path / "a.yaml", path), "--storage", tmp_path / "store")
        assert shown.returncode == 2, shown.stdout
        [line] = shown.stderr.splitlines()
        assert words in line
