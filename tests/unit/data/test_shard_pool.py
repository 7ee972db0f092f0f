"""A pool is read many files at a time, in order, and with bounded read-ahead."""

import threading

import embedded
import pytest

from pipelines.data.formats.shard import SourceShard
from pipelines.data.shard_pool import CONCURRENT_READS, complete_shards, prefetch
from pipelines.store.artifacts import Store


def test_reading_ahead_is_bounded_and_in_order():
    begun, meet = [], threading.Barrier(CONCURRENT_READS)

    def read(i):
        begun.append(i)
        if i < CONCURRENT_READS:
            meet.wait(30)  # passed only if all of them are read at the same time
        return i * i

    found = prefetch(range(1000), read)
    for i in range(1000):
        assert next(found) == i * i
        assert len(begun) <= i + 2 * CONCURRENT_READS
    assert sorted(begun) == list(range(1000))


def test_what_reading_raises_is_raised():
    def read(i):
        if i == 70:
            raise ValueError("row 70 is damaged")
        return i

    with pytest.raises(ValueError, match="row 70"):
        list(prefetch(range(500), read))


def shard(name, identity="x"):
    return SourceShard(name=name, folder="/data", path=f"{name}.tar", identity=identity, bytes=1)


def test_what_is_whole_comes_in_the_order_asked(tmp_path):
    job = embedded.job(Store.at(str(tmp_path)))
    shards = [shard(name) for name in "dbace"]
    for s in shards:
        embedded.embed(job, s, ["a fox"] if s.name != "c" else [], bad=[("k", "why", "")])
    job.store.write(job.path(shards[1], "parquet"), b"torn")
    job.store.remove(job.path(shards[2], "json"))
    others = [shard("d", identity="of other content"), shard("new")]
    found = list(complete_shards(job.store, job.pool, [*others, *shards]))
    assert [s.name for s, _ in found] == ["d", "c", "e"]
    assert [record["rows"] for _, record in found] == [1, 0, 1]
    assert list(complete_shards(job.store, "embeddings/none", shards)) == []
