"""A data set in a bucket whose server fails: the same rows, and none lost."""

import pytest
import test_formats
from dirty import CASES, EXPECTED_GOOD, source_at
from s3 import KINDS

from pipelines.data.files import list_files
from pipelines.data.sources import list_shards, read_shard
from pipelines.store import remote
from pipelines.store.artifacts import Store


@pytest.fixture
def bucket(s3, tmp_path):
    return Store.open(f"s3://bucket/{tmp_path.name}")


@pytest.mark.slow
@pytest.mark.parametrize("write", test_formats.FORMATS)
def test_server_failures_lose_no_row(tmp_path, bucket, s3, monkeypatch, write):
    few = dict(list(CASES.items())[::5])
    assert 1 < len(few.keys() & EXPECTED_GOOD) < len(few)
    monkeypatch.setattr(test_formats, "CASES", few)
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder)
    bucket.put_folder(folder, "data")
    source = source_at(f"{bucket.root}/data")
    shards = list_shards(source)
    assert [(s.name, s.bytes) for s in shards] == [
        (s.name, s.bytes) for s in list_shards(source_at(folder))
    ]
    here = list_shards(source_at(folder))
    for shard, local in zip(shards, here, strict=True):
        want = list(read_shard(source, local))
        for kind in KINDS:
            s3.faults.next = [kind]
            assert remote.attempt(lambda: list(read_shard(source, shard))) == want  # noqa: B023
    assert s3.faults.done.total() == len(KINDS) * len(shards)


def test_one_file_is_found_despite_server_failures(bucket, s3):
    bucket.write("data/a.parquet", b"1234")
    for kind in KINDS:
        s3.faults.next = [kind]
        location, [file] = list_files(f"{bucket.root}/data/a.parquet")
        assert (location.folder, file.path, file.bytes) == (f"{bucket.root}/data", "a.parquet", 4)


def test_an_unavailable_bucket_rejects_no_row(bucket, s3, monkeypatch):
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    bucket.write("data/a.jpg", b"1234")
    location, _ = list_files(f"{bucket.root}/data")
    assert location.fetch("a.jpg") == b"1234"
    s3.faults.rate, s3.faults.kinds = 1.0, ("503",)
    with pytest.raises(remote.StorageError, match="2 attempts failed"):
        location.fetch("a.jpg")
