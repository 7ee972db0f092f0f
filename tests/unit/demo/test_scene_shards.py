"""Shards hold every scene once, in order, and are reproducible byte for byte."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.demo import parquet
from pipelines.demo.make import row, write_parquet
from pipelines.demo.scenes import draw

ARGUMENTS = {"split": "validation", "count": 25, "shards": 4, "seed": 7, "quiet": True}


@pytest.mark.slow
def test_the_same_arguments_write_the_same_bytes(tmp_path):
    first = write_parquet(tmp_path / "a", **ARGUMENTS)
    second = write_parquet(tmp_path / "b", **ARGUMENTS)
    other = write_parquet(tmp_path / "c", **{**ARGUMENTS, "seed": 8})
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert all(p.read_bytes() != q.read_bytes() for p, q in zip(first, other, strict=True))


def test_every_scene_is_written_once_and_losslessly(tmp_path):
    paths = write_parquet(tmp_path, **ARGUMENTS)
    assert [path.name for path in paths] == [f"part-0000{k}-of-00004.parquet" for k in range(4)]
    assert sorted(tmp_path.iterdir()) == paths
    records = [record for path in paths for record in pq.read_table(path).to_pylist()]
    assert [record["key"] for record in records] == [f"validation-{k:06d}" for k in range(25)]
    for index, record in enumerate(records):
        picture = np.asarray(Image.open(io.BytesIO(record["image"])))
        np.testing.assert_array_equal(picture, draw(7, "validation", index)[1])
        assert record == row(7, "validation", index)


def test_an_interrupted_shard_leaves_nothing_behind(tmp_path, monkeypatch):
    def full_disk(table, where, **options):
        where.write_bytes(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(parquet.pq, "write_table", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_parquet(tmp_path, **ARGUMENTS)
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_are_explained(tmp_path):
    with pytest.raises(ValueError, match="at least one picture for each"):
        write_parquet(tmp_path, **{**ARGUMENTS, "shards": 26})
    with pytest.raises(ValueError, match="train, validation, scorer"):
        write_parquet(tmp_path, **{**ARGUMENTS, "split": "test"})
    write_parquet(tmp_path, **ARGUMENTS)
    with pytest.raises(ValueError, match=r"part-00000-of-00004.parquet: write to an empty folder"):
        write_parquet(tmp_path, **{**ARGUMENTS, "shards": 5})
