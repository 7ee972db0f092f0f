"""The order of training's rows: each once an epoch, the same for all, answerable anywhere."""

import resource

import numpy as np
import pytest

from pipelines.store import order as order_module
from pipelines.store.order import Order, permuted

USABLE = np.array([11, 0, 3, 8, 1, 14, 4])


def pairs(order, index):
    shards, rows = order(index)
    return list(zip(shards.tolist(), rows.tolist()))


@pytest.mark.parametrize("group_rows", [1, 4, 32])
@pytest.mark.parametrize(
    ("lanes", "run", "window"),
    [(1, 1, 1), (1, 5, 100), (4, 1, 3), (4, 3, 5), (8, 2, 16), (50, 1, 2), (3, 50, 7)],
)
def test_every_epoch_shows_every_row_once(group_rows, lanes, run, window):
    order = Order(USABLE, group_rows=group_rows, seed=3, lanes=lanes, run=run, window=window)
    everything = [(s, r) for s, n in enumerate(USABLE) for r in range(n)]
    epochs = [pairs(order, np.arange(e * order.rows, (e + 1) * order.rows)) for e in range(3)]
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_an_order_depends_on_its_seed_alone():
    index = np.arange(41)

    def made(seed):
        return pairs(Order(USABLE, group_rows=4, seed=seed, lanes=4, window=8), index)

    assert made(1) == made(1)
    assert made(1) != made(2)


@pytest.mark.parametrize("run", [1, 3])
@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_workers_that_slice_each_batch_see_the_stream_of_one(workers, run):
    batch, total = 24, 24 * 10  # five epochs and a bit
    whole = pairs(
        Order(USABLE, group_rows=4, seed=0, lanes=batch // run, run=run, window=4), np.arange(total)
    )
    share = batch // workers
    orders = [
        Order(USABLE, group_rows=4, seed=0, lanes=batch // run, run=run, window=4)
        for _ in range(workers)
    ]
    seen = [
        pair
        for start in range(0, total, batch)
        for w, order in enumerate(orders)
        for pair in pairs(order, np.arange(start + w * share, start + (w + 1) * share))
    ]
    assert seen == whole


def test_any_place_can_be_asked_first():
    whole = pairs(Order(USABLE, group_rows=4, seed=0, lanes=5, window=4), np.arange(400))
    for start in (1, 40, 41, 399):
        order = Order(USABLE, group_rows=4, seed=0, lanes=5, window=4)
        assert pairs(order, np.arange(start, 400)) == whole[start:]


def test_many_row_groups_are_in_the_order_that_few_would_be(monkeypatch):
    def made():
        return pairs(Order(USABLE, group_rows=2, seed=0, lanes=3, window=4), np.arange(100))

    few = made()
    monkeypatch.setattr(order_module, "_LISTED", 0)
    assert made() == few


@pytest.mark.parametrize("run", [1, 2])
def test_ranks_with_their_own_lanes_open_each_row_group_once(run):
    usable, batch, ranks = np.full(40, 250), 16, 4
    order = Order(usable, group_rows=8, seed=0, lanes=batch // run, run=run, window=32)
    opened = 0
    for rank in range(ranks):
        held: dict = {}
        for start in range(0, order.rows, batch):
            mine = np.arange(start, min(start + batch, order.rows))[rank * 4 : rank * 4 + 4]
            for shard, row in pairs(order, mine):
                key = (shard, row // 8)
                opened += key not in held
                held.pop(key, None)
                held[key] = None
                if len(held) > 1.5 * 4 // run * (32 // 8 + 2):  # what the module's text promises
                    held.pop(next(iter(held)))
    groups = (usable // 8 + 1).sum()
    assert groups <= opened <= 1.02 * groups


def test_rows_that_lie_together_are_spread():
    order = Order(np.full(50, 100), group_rows=10, seed=0, lanes=8, window=100)
    shards, _ = order(np.arange(order.rows))
    together = (shards[1:] == shards[:-1]).mean()
    assert together < 2 / 50  # by chance 1 in 50
    first = shards[: order.rows // 10]
    assert len(np.unique(first)) > 30  # eight windows of ten groups: 40 of 50 by chance


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 1000])
def test_a_permutation_is_one_and_has_no_favourites(n):
    for key in range(5):
        assert sorted(permuted(np.arange(n), n, key).tolist()) == list(range(n))
    if n > 5:
        return
    trials = 800
    counts = sum(np.eye(n)[permuted(np.arange(n), n, 7919 * k)] for k in range(trials))
    assert np.abs(counts / trials - 1 / n).max() < 0.06


def test_a_billion_rows_in_a_million_shards():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    usable = np.random.default_rng(0).integers(500, 1500, 1_000_000)
    order = Order(usable, group_rows=32, seed=0, lanes=4096, window=256)
    for start in (0, 987_654_321, 10**12):
        shards, rows = order(np.arange(start, start + 1000))
        assert (rows < usable[shards]).all()
        assert len(set(zip(shards.tolist(), rows.tolist()))) == 1000
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 400 * 1024


def test_nothing_to_show_is_an_error():
    with pytest.raises(ValueError, match="needs rows"):
        Order(np.zeros(3, int), group_rows=4, seed=0)
