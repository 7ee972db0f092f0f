"""Pipelines whose store and data are in a bucket that fails: the bytes of those on a disk."""

import os
from pathlib import Path

import pytest
from bucket_kit import assert_same, nodes_of, shards_of, spec_at
from kit import SMOKE, SPECS, call, ediffi
from s3 import KEY, SECRET, forget_connections

from pipelines.store.artifacts import Store

pytestmark = pytest.mark.slow

RATE = 0.05
LAG_S = 2.0
DEMO_PATIENCE_S = 3 * 3600
ASTRAY = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_ACCESS_KEY_ID": "another",
    "AWS_SECRET_ACCESS_KEY": "another",
}


def assert_no_secret(bucket: Store, texts: list[str], *folders: Path) -> None:
    """Neither in what was printed, nor in a file anywhere."""
    assert not [text for text in texts if SECRET in text or KEY in text]
    places = {name: lambda name=name: bucket.read(name) for name in bucket.files("")}
    for folder in folders:
        places |= {str(p): p.read_bytes for p in folder.rglob("*") if p.is_file()}
    assert len(places) > 50
    for name, read in places.items():
        content = read()
        assert SECRET.encode() not in content and KEY.encode() not in content, name


@pytest.fixture
def home(s3, tmp_path):
    """Where the command, too, keeps what it keeps."""
    assert os.environ["HOME"] == str(tmp_path / "home")
    (tmp_path / "home").mkdir(exist_ok=True)
    return tmp_path / "home"


# -- pipelines -----------------------------------------------------------------------------------


@pytest.mark.soak
def test_a_bucket_that_fails_gives_the_bytes_of_a_disk(
    smoke, s3, home, tmp_path, capsys, monkeypatch
):
    """The shared smoke run's, whose validation data are the user's here, and in the bucket."""
    disk, bucket = Store.at(str(smoke.store)), Store.at("s3://bucket/smoke")
    [rows] = smoke.folder("data/validation").glob("*.parquet")
    Store.at("s3://bucket/data/scenes").write(rows.name, rows.read_bytes())

    # The spec alone leads there, past an environment that leads astray.
    settings = {"endpoint_url": s3.endpoint, "region": "us-east-1", "key": KEY, "secret": SECRET}
    spec = spec_at(tmp_path / "s3.yaml", "s3://bucket/data/scenes", s3=settings)
    s3.faults.rate, s3.faults.lag_s = RATE, LAG_S
    run = ediffi("run", spec, "--storage", bucket.root, **ASTRAY)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""

    # Again, without Ray; and where a plan, a status or a tree is printed. Of the secret, nothing.
    texts = [run.stdout]
    for name, value in {**ASTRAY, "RAY_ADDRESS": "127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    for verb in (["run", spec], ["plan", spec, "--json"], ["plan", spec], ["status", spec]):
        forget_connections()
        assert call(*verb, "--storage", bucket.root) == 0
        texts += capsys.readouterr()
    assert "\n0 to run, 13 reused" in texts[5], texts[5]
    s3.faults.rate = s3.faults.lag_s = 0.0
    assert call("tree", "--storage", bucket.root) == 0
    texts += capsys.readouterr()
    assert s3.faults.done.total() > 10, s3.faults

    made = {"data/train", "encoders/tiny", "embed/train"}
    trained = {"train/base/E0_0", "train/base/E1_1", "train/sr32/E0_0"}
    for node in made | trained | {"evaluate/base/root"}:
        assert_same(node, bucket, disk, node if node.startswith("evaluate") else "")
    assert_same("evaluate/base/ensemble", bucket, disk, "evaluate/base/root")
    drawn = {"evaluate/base/ensemble", "evaluate/base/root", "evaluate/sr32/ensemble"}
    rest = {"embed/validation", "adopt/base", "adopt/sr32", "promote/smoke"}
    assert nodes_of(bucket) == made | trained | drawn | rest
    for split, shards in (("train", 4), ("validation", 1)):
        assert len(shards_of(bucket, f"embed/{split}")) == shards
        assert shards_of(bucket, f"embed/{split}") == shards_of(disk, f"embed/{split}")
    assert not [name for name in bucket.fs.find(bucket.full("ray-train")) if "." in name]

    # The record: on this machine, and it is said.
    assert "on this machine, as a bucket cannot hold it" in run.stdout
    [record] = home.glob(".local/share/ediffi/*/mlflow.db")
    assert f"sqlite:///{record}" in run.stdout
    assert_no_secret(bucket, texts, home)


@pytest.mark.soak
@pytest.mark.timeout(2 * DEMO_PATIENCE_S)
def test_the_whole_demo_in_a_bucket_that_fails(s3, home, tmp_path):
    """Every node's files are a disk's, and so is what the model draws. The data, too, are there."""
    disk, bucket = Store.at(str(tmp_path / "store")), Store.at("s3://bucket/demo")
    texts, pictures, demo = [], [], SPECS / "demo.yaml"
    for store, rate, lag_s in ((disk, 0.0, 0.0), (bucket, RATE, LAG_S)):
        s3.faults.rate, s3.faults.lag_s = rate, lag_s
        picture = tmp_path / f"{len(pictures)}.png"
        run = ediffi("run", demo, "--storage", store.root, patience_s=DEMO_PATIENCE_S)
        texts += [run.stdout, run.stderr]
        assert run.returncode == 0, texts[-2:]
        drawing = ("emoji-scenes", "a frog left of a rocket", "-o", picture)
        draw = ediffi("sample", *drawing, "--storage", store.root)
        texts += [draw.stdout, draw.stderr]
        assert draw.returncode == 0, texts[-2:]
        pictures.append(picture.read_bytes())
    s3.faults.rate = s3.faults.lag_s = 0.0
    assert s3.faults.done.total() > 50, s3.faults
    assert_same_demo(bucket, disk)
    assert pictures[0] == pictures[1]
    assert_no_secret(bucket, texts, home, tmp_path / "store")


def assert_same_demo(bucket: Store, disk: Store) -> None:
    assert nodes_of(bucket) == nodes_of(disk)
    assert len(nodes_of(disk)) == 21
    for node in nodes_of(disk):
        assert_same(node, bucket, disk)
    for split, shards in (("train", 8), ("validation", 1)):
        assert len(shards_of(bucket, f"embed/{split}")) == shards
        assert shards_of(bucket, f"embed/{split}") == shards_of(disk, f"embed/{split}")


def test_a_late_listing_does_not_make_half_of_a_finished_node(s3):
    """Nor of a folder of its files, for libraries that need a path."""
    bucket = Store.at("s3://bucket/store")
    s3.faults.lag_s = 3600.0
    mine = ["t5/config.json", "t5/deep/weights"]
    for name in (*mine, "clip/weights"):
        bucket.write(f"nodes/encoders/x/{name}", name.encode())
    bucket.commit("nodes/encoders/x", mine, {})
    assert bucket.files("nodes/encoders/x") == {}
    whole = bucket.local("nodes/encoders/x")
    assert (whole / "t5/deep/weights").read_bytes() == b"t5/deep/weights"
    part = bucket.local("nodes/encoders/x/t5")
    assert sorted(p.name for p in part.rglob("*") if p.is_file()) == ["config.json", "weights"]
    with pytest.raises(ValueError, match="clip does not exist"):
        bucket.local("nodes/encoders/x/clip")
    assert bucket.local("nodes/encoders/x/t5/config.json").read_bytes() == b"t5/config.json"


# -- mistakes ------------------------------------------------------------------------------------


@pytest.fixture
def mistake(s3, capsys):
    """``mistake(*arguments)`` → the one line that the command answers a mistake with."""

    def run(*args):
        capsys.readouterr()
        forget_connections()
        code = call(*args)
        out, err = capsys.readouterr()
        [line] = err.splitlines()
        assert code == 2, out + err
        assert line.startswith("ediffi: ") and SECRET not in out + err
        return line

    return run


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
def test_what_cannot_work_is_one_line(mistake, monkeypatch, verb, storage, change, words):
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    assert words in mistake(verb, SMOKE, "--storage", storage)


def test_a_mistake_is_one_line_in_a_process_of_its_own(s3):
    """Where libraries' warnings would show."""
    end = ediffi("run", SMOKE, "--storage", "s3://no-such-bucket/store")
    assert (end.returncode, end.stderr.count("\n")) == (2, 1), end.stdout + end.stderr


def test_data_that_cannot_be_had_are_one_line(mistake, tmp_path):
    for path, words in (
        ("s3://bucket/nothing", "data folder s3://bucket/nothing does not exist"),
        ("s3://no-such-bucket/data", "no such bucket"),
    ):
        spec = spec_at(tmp_path / "a.yaml", path)
        assert words in mistake("plan", spec, "--storage", tmp_path / "store")
