"""Keys in several shards are counted exactly, in bounded memory, and the first shard is named."""

import random
from collections import Counter
from itertools import pairwise

import embedded
import numpy as np
import pytest

from pipelines.data import duplicate_keys
from pipelines.data.formats.shard import SourceShard
from pipelines.steps.embed_tally import Tally
from pipelines.store.artifacts import Store
from pipelines.store.dataset import Version


@pytest.fixture
def version(tmp_path):
    """``version(keys of a shard, …)``: shards s0, s1 … of rows with these keys."""
    job = embedded.job(Store.at(str(tmp_path)))

    def make(*shards):
        tally = Tally(job.pool)
        for i, keys in enumerate(shards):
            shard = SourceShard(name=f"s{i}", folder="/d", path=f"{i}", identity=f"{i}", bytes=1)
            tally.add(embedded.embed(job, shard, ["a fox"] * len(keys), keys=keys))
        return Version.write(job.store, "nodes/embed/x", tally.table(), tally.header)

    return make


def test_nothing_is_repeated(version):
    found = version(["a", "b"], ["c"], ["d", "ä"])
    assert duplicate_keys.find_duplicates(found) == {"rows": 0, "examples": []}


def test_a_key_counts_from_its_second_shard_on(version):
    found = duplicate_keys.find_duplicates(version(["a", "b"], ["c", "b"], ["b", "d"]))
    assert found == {"rows": 2, "examples": [{"key": "b", "first": "s0", "again": "s1"}]}


@pytest.mark.parametrize("part_rows", [7, 10**6])
@pytest.mark.parametrize("kept", [True, False])
def test_it_counts_what_a_counter_of_all_keys_does(version, part_rows, kept, monkeypatch):
    """In many parts or one; with the files of hashes, or from the shards where they are lost."""
    monkeypatch.setattr(duplicate_keys, "PART_ROWS", part_rows)
    draw = random.Random(2)
    shards = [[f"k{i}" for i in draw.sample(range(150), 20)] for _ in range(9)]
    made = version(*shards)
    if not kept:
        for path in made.table["path"].to_pylist():
            made.store.remove(duplicate_keys.keys_path(path))
    found = duplicate_keys.find_duplicates(made)
    counts = Counter(key for shard in shards for key in shard)
    assert found["rows"] == sum(n - 1 for n in counts.values()) > 20
    assert len(found["examples"]) == duplicate_keys.EXAMPLES
    for one in found["examples"]:
        having = [f"s{i}" for i, keys in enumerate(shards) if one["key"] in keys]
        assert having[:2] == [one["first"], one["again"]]


def test_parts_are_all_hashes_dealt_by_value(tmp_path):
    rng = np.random.default_rng(0)
    shards = [np.sort(rng.integers(0, 2**64, 300, np.uint64)) for _ in range(5)]
    parts = list(duplicate_keys._partition(iter(shards), 4, tmp_path))
    assert max(map(len, parts)) < 450
    for low, high in pairwise(parts):
        assert low["hash"].max() < high["hash"].min()
    together = np.concatenate(parts)
    for i, hashes in enumerate(shards):
        mine = together["hash"][together["shard"] == i]
        assert np.array_equal(np.sort(mine), hashes)
    assert not list(tmp_path.iterdir())
