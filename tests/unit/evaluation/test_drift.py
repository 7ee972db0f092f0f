"""Drift between data set versions: known distances, intervals that cover, and new shards alone."""

import numpy as np
import pytest
import torch
from tiny_shards import header, made_rows

from pipelines.evaluation.drift import (
    compare,
    embedding_distance,
    length_distance,
    share_difference,
)
from pipelines.store.artifacts import Store
from pipelines.store.dataset import Version
from pipelines.store.shards import write

ROWS = 250


@pytest.fixture
def store(tmp_path):
    return Store.at(str(tmp_path / "store"))


def shard(store, name, *, seed=0, longer=0, shift=0.0, bad=0):
    """A shard whose captions are so many tokens longer, and its pictures' embeddings shifted."""
    rows = made_rows(ROWS, name=name, seed=seed)
    rows["t5"] = [torch.cat([t, t[:1].expand(longer, -1)]) for t in rows["t5"]]
    rows["clip_image"] = [v + shift for v in rows["clip_image"]]
    written = write(rows, header())
    path = f"embeddings/tiny/{name}-{seed}.parquet"
    store.write(path, written.data)
    about = {"name": name, "path": path, "bytes": len(written.data), "sha256": ""}
    about["quarantined"] = {"broken": bad} if bad else {}
    return written.record | about


def version(store, name, *shards):
    Version.write(store, f"nodes/embed/{name}", shards, header())
    return f"nodes/embed/{name}"


def drift(store, *folders, rows=1000):
    return compare(store, *folders, rows=rows, seed=0)


def test_more_of_the_same_has_not_drifted(store):
    old = shard(store, "a", seed=1)
    before = version(store, "before", old)
    found, counts = drift(store, before, version(store, "now", old, shard(store, "b", seed=2)))
    assert counts == {"shards_before": 1, "shards": 1, "rows_before": ROWS, "rows": ROWS}
    assert set(found) == {"quarantined", "length/t5", "mmd/clip_image"}
    assert all(one.low <= 0 <= one.high for one in found.values())


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"longer": 2}, "length/t5"),
        ({"shift": 0.7}, "mmd/clip_image"),
        ({"bad": 60}, "quarantined"),
    ],
)
def test_a_change_of_the_new_shard_shows_in_its_own_measure_alone(store, changed, name):
    old = [shard(store, f"a{i}", seed=10 + i) for i in range(3)]
    before = version(store, "before", *old)
    new = shard(store, "b", seed=2, **changed)
    found, _ = drift(store, before, version(store, "now", *old, new))
    assert {of for of, one in found.items() if one.low > 0} == {name}
    assert found[name].low <= found[name].value <= found[name].high


def test_the_new_shards_are_compared_and_not_what_both_versions_share(store):
    old = [shard(store, f"a{i}", seed=10 + i) for i in range(3)]
    before, new = version(store, "before", *old), shard(store, "b", seed=2, longer=9)
    found, counts = drift(store, before, version(store, "now", *old, new))
    assert counts["shards"] == 1
    assert found["length/t5"].value == 1.0  # of 1 to 5 tokens and of 10 to 14


def test_without_new_shards_all_are_compared(store):
    old, more = shard(store, "a", seed=1), shard(store, "b", seed=2, longer=9)
    before = version(store, "before", old, more)
    found, counts = drift(store, before, version(store, "now", old))
    assert (counts["shards_before"], counts["shards"]) == (2, 1)
    assert found["length/t5"].value == pytest.approx(0.5)


def test_the_sample_is_of_so_many_rows_and_the_same_again(store):
    before = version(store, "before", shard(store, "a", seed=1))
    now = version(store, "now", shard(store, "b", seed=2, shift=0.2))
    found, counts = drift(store, before, now, rows=50)
    assert counts["rows"] == counts["rows_before"] == 50
    assert drift(store, before, now, rows=50) == (found, counts)
    assert drift(store, before, now, rows=60)[0] != found


def test_quarantined_rows_of_shards_without_rows_count(store):
    old = shard(store, "a", seed=1)
    before = version(store, "before", old)
    now = version(store, "now", old, shard(store, "b", seed=2))
    store.write_json("embeddings/tiny/c.json", {"quarantined": {"broken": ROWS}, "read": ROWS})
    store.write_json(f"{now}/stats.json", {"empty": ["embeddings/tiny/c.json"]})
    assert drift(store, before, now)[0]["quarantined"].value == 0.5


# -- the measures ----------------------------------------------------------------------------------


def test_the_length_distance_is_that_of_the_distribution_functions():
    a, b = np.array([1, 1, 2, 2]), np.array([1, 2, 2, 3])
    assert length_distance(a, b).value == 0.25
    assert length_distance(a, a).value == 0.0
    assert length_distance(a, b).high <= 1.0


def test_mmd_is_unbiased_and_its_interval_covers_the_truth():
    """Of N(0, I) and N(d, I) in D dimensions, with bandwidth s: Gretton et al. 2012."""
    torch.manual_seed(0)
    dim, shift, trials = 3, 0.8, 60
    values, covered = [], 0
    for _ in range(trials):
        a, b = torch.randn(120, dim).double(), torch.randn(120, dim).double() + shift
        found = embedding_distance(a, b)
        s2 = float(torch.pdist(a).median()) ** 2
        truth = 2 * (s2 / (s2 + 2)) ** (dim / 2) * (1 - np.exp(-dim * shift**2 / 2 / (s2 + 2)))
        values.append(found.value - truth)
        covered += found.low <= truth <= found.high
    assert abs(np.mean(values)) < 3 * np.std(values) / trials**0.5
    assert covered >= 0.85 * trials


def test_the_interval_of_a_difference_of_shares_covers_the_truth():
    rng = np.random.default_rng(0)
    draws = zip(rng.binomial(200, 0.02, 400), rng.binomial(80, 0.1, 400), strict=True)
    covered = [(one := share_difference(x, 200, y, 80)).low <= 0.08 <= one.high for x, y in draws]
    assert 0.91 <= np.mean(covered) <= 0.99
