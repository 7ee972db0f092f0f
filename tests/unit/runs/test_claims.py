"""Two pipelines share a node: one builds it, the other waits or takes over from a dead driver."""

import pytest
from test_lease import aged

from pipelines.runs.claims import POLL_EVERY_S, ClaimLost, Claims
from pipelines.runs.lease import STALE_S, acquire, only_driver
from pipelines.store.artifacts import Store

NODE = "nodes/train/base/E0_0-abc"


@pytest.fixture
def bucket(s3, tmp_path):
    return Store.at(f"s3://bucket/{tmp_path.name}/store")


@pytest.fixture(params=["folder", "bucket"])
def store(request, tmp_path):
    if request.param == "folder":
        return Store.at(str(tmp_path / "store"))
    return request.getfixturevalue("bucket")


class Time:
    s = 0.0

    def __call__(self):
        return self.s


@pytest.fixture
def now():
    return Time()


@pytest.mark.slow
def test_one_builds_it_and_the_other_polls(store, now):
    with only_driver(store, "one") as first, only_driver(store, "two") as second:
        one, two = Claims(store, "one", first), Claims(store, "two", second, now)
        assert one.acquire(NODE) is None and one.acquire(NODE) is None
        pipeline, holder = two.acquire(NODE)
        assert (pipeline, holder.owner) == ("one", first.owner)
        assert two.acquire("nodes/train/base/E1_1-abc") is None
        assert not two.is_due(NODE)
        now.s = POLL_EVERY_S
        assert two.is_due(NODE)
        one.check(NODE)
        one.release(NODE)
        assert two.acquire(NODE) is None
        two.check(NODE)
        with pytest.raises(ClaimLost, match="another driver has taken over nodes/train/base/E0_0"):
            one.check(NODE)
        one.release(NODE)
        two.check(NODE)


@pytest.mark.slow
def test_what_a_dead_driver_claimed_is_taken_over(store, now):
    with only_driver(store, "two") as second:
        with only_driver(store, "one") as first:
            Claims(store, "one", first).acquire(NODE)  # and never releases it
            assert Claims(store, "two", second, now).acquire(NODE) is not None
        assert Claims(store, "two", second, now).acquire(NODE) is None


@pytest.mark.slow
def test_a_pipelines_next_driver_takes_over_from_its_last(store):
    with only_driver(store, "one") as first:
        Claims(store, "one", first).acquire(NODE)
    with only_driver(store, "one") as second:
        assert Claims(store, "one", second).acquire(NODE) is None


@pytest.mark.slow
def test_a_claim_in_a_bucket_is_valid_while_its_driver_renews(bucket, now):
    first, second = acquire(bucket, "one"), acquire(bucket, "two")
    one, two = Claims(bucket, "one", first), Claims(bucket, "two", second, now)
    one.acquire(NODE)
    for _ in range(5):
        now.s += STALE_S - 1
        first.renew()
        assert two.acquire(NODE) is not None
    now.s += STALE_S + 1
    assert two.acquire(NODE) is None
    with pytest.raises(ClaimLost):
        one.check(NODE)


@pytest.mark.slow
def test_a_claim_of_a_driver_whose_clock_is_slow_is_respected(bucket, now):
    first, second = acquire(bucket, "one"), acquire(bucket, "two")
    Claims(bucket, "one", first).acquire(NODE)
    aged(bucket, 1000, "one")
    two = Claims(bucket, "two", second, now)
    assert two.acquire(NODE) is not None
    now.s += STALE_S - 1
    assert two.acquire(NODE) is not None
    now.s += 1
    assert two.acquire(NODE) is None


MANIFEST = b'{"files": {}}'


def sealed(store, owner):
    """The claim of a driver that died between the commit and the manifest's file."""
    claims = Claims(store, "one", owner)
    assert claims.acquire(NODE) is None
    claims._swap(NODE, sealed=MANIFEST.decode())
    return claims


def test_who_takes_over_a_committed_node_writes_its_manifest(store, now):
    with only_driver(store, "two") as second:
        with only_driver(store, "one") as first:
            sealed(store, first)
        two = Claims(store, "two", second, now)
        assert two.acquire(NODE) is None
        assert store.read(f"{NODE}/manifest.json") == MANIFEST
        two.fenced(NODE).write(f"{NODE}/again", b"the node may be built again if it lost files")


def test_a_driver_that_lost_the_node_commits_nothing(bucket, now):
    first, second = acquire(bucket, "one"), acquire(bucket, "two")
    one, two = Claims(bucket, "one", first), Claims(bucket, "two", second, now)
    one.acquire(NODE)
    two.acquire(NODE)
    now.s += STALE_S
    assert two.acquire(NODE) is None
    with pytest.raises(ClaimLost):
        one.commit(NODE, MANIFEST)
    assert bucket.read(f"{NODE}/manifest.json") is None
    two.commit(NODE, MANIFEST)
    assert bucket.read(f"{NODE}/manifest.json") == MANIFEST


def test_a_claim_stays_sealed_if_its_manifest_may_not_be_written(store, monkeypatch):
    with only_driver(store, "one") as first:
        claims = Claims(store, "one", first)
        claims.acquire(NODE)
        with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):

            def full(*_):
                raise OSError("full")

            patch.setattr("pipelines.store.fenced.FencedStore.write", full)
            claims.commit(NODE, MANIFEST)
        claims.release(NODE)
        assert store.read(f"{NODE}/manifest.json") is None
        assert claims.acquire(NODE) is None
        assert store.read(f"{NODE}/manifest.json") == MANIFEST
