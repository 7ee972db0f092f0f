"""One driver at a time; a dead driver's lease is taken over, and it notices before it writes."""

import json
import threading
import time
from types import SimpleNamespace

import pytest

from pipelines.runs import lease as leases
from pipelines.runs.lease import (
    Lease,
    LeaseLost,
    acquire,
    holder_of,
    is_driven,
    only_driver,
    path_of,
)
from pipelines.store.artifacts import Store
from pipelines.store.compare_and_swap import compare_and_swap, read_snapshot

GONE = 2**22 + 1
"""Above the largest number of a process."""


class Clock:
    """A clock that advances only while somebody sleeps; wall and monotonic time agree."""

    def __init__(self):
        self.s, self.begun = 0.0, time.time()
        self.meanwhile = lambda: None

    def time(self):
        return self.begun + self.s

    def sleep(self, seconds):
        self.s += seconds
        self.meanwhile()

    def acquire(self, store, pipeline="smoke"):
        self.logged = []
        return acquire(store, pipeline, self.logged.append, self.sleep, lambda: self.s)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(leases, "time", SimpleNamespace(time=clock.time, monotonic=time.monotonic))
    return clock


@pytest.fixture
def bucket(s3, tmp_path):
    return Store.at(f"s3://bucket/{tmp_path.name}/store")


@pytest.fixture(params=["folder", "bucket"])
def store(request, tmp_path):
    if request.param == "folder":
        return Store.at(str(tmp_path / "store"))
    return request.getfixturevalue("bucket")


def aged(store, seconds, pipeline="smoke", **more):
    """Make a lease look last renewed so many seconds earlier, as if its driver were dead."""
    record = json.loads(store.read(path_of(pipeline)))
    record |= {"beat": record["beat"] - seconds, **more}
    store.write_json(path_of(pipeline), record)


@pytest.mark.slow
def test_a_swap_is_done_only_on_what_was_seen(store):
    nothing = read_snapshot(store, "a/file")
    assert nothing.data is None and compare_and_swap(store, "a/file", nothing, b"one")
    assert not compare_and_swap(store, "a/file", nothing, b"two")
    seen = read_snapshot(store, "a/file")
    assert seen.data == b"one" and compare_and_swap(store, "a/file", seen, b"two")
    assert not compare_and_swap(store, "a/file", seen, b"three")
    assert store.read("a/file") == b"two"


@pytest.mark.slow
def test_a_swap_works_where_tags_are_compared_without_quotes(s3, bucket):
    s3.faults.bare_tags = True
    assert compare_and_swap(bucket, "a/file", read_snapshot(bucket, "a/file"), b"one")
    seen = read_snapshot(bucket, "a/file")
    assert compare_and_swap(bucket, "a/file", seen, b"two")
    assert not compare_and_swap(bucket, "a/file", seen, b"three")
    assert bucket.read("a/file") == b"two"


def test_of_many_that_swap_at_once_one_succeeds(store):
    seen, won = read_snapshot(store, "a/file"), []
    barrier = threading.Barrier(8)

    def work(i):
        barrier.wait()
        if compare_and_swap(store, "a/file", seen, str(i).encode()):
            won.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [store.read("a/file")] == [str(i).encode() for i in won]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lost", "reset", "503"])
def test_a_swap_whose_answer_is_lost_was_done_once(s3, bucket, kind):
    s3.faults.methods, s3.faults.next = ("PUT",), [kind]
    assert compare_and_swap(bucket, "a/file", read_snapshot(bucket, "a/file"), b"one")
    s3.faults.next = [kind]
    assert compare_and_swap(bucket, "a/file", read_snapshot(bucket, "a/file"), b"two")
    assert bucket.read("a/file") == b"two"


def test_a_second_driver_is_refused_while_the_first_renews(bucket, clock):
    first = clock.acquire(bucket)
    clock.meanwhile = first.renew
    with pytest.raises(
        ValueError, match=r"smoke is already running \(.*, process \d+, last heartbeat"
    ):
        clock.acquire(bucket)
    assert clock.s <= leases.RENEW_EVERY_S and "checking whether it is alive" in clock.logged[0]
    clock.acquire(bucket, "another")


@pytest.mark.slow
def test_a_driver_that_does_not_renew_is_taken_over_and_notices(bucket, clock):
    first = clock.acquire(bucket)
    first.check()
    second = clock.acquire(bucket)
    assert clock.s == pytest.approx(leases.STALE_S)
    assert second.holder.attempt == 2 and "taking over from" in clock.logged[-1]
    with pytest.raises(LeaseLost, match=r"another driver has taken over \(.*process"):
        first.check()
    second.check()
    first.release()
    assert holder_of(bucket, "smoke").owner == second.owner


@pytest.mark.slow
@pytest.mark.parametrize("behind_s", [1000, 47, -1000])
def test_the_clocks_of_two_machines_are_not_compared(bucket, clock, behind_s):
    """A driver whose clock is wrong has as long to renew as any other."""
    clock.acquire(bucket)
    aged(bucket, behind_s)
    assert is_driven(bucket, "smoke")
    clock.acquire(bucket)
    assert clock.s == pytest.approx(leases.STALE_S)


def test_a_driver_is_alive_if_its_record_changes_though_its_clock_stands_still(bucket, clock):
    first, begun = clock.acquire(bucket), time.time()
    clock.time = lambda: begun
    clock.meanwhile = first.renew
    with pytest.raises(ValueError, match="is already running"):
        clock.acquire(bucket)


@pytest.mark.parametrize("lacks", ["machine", "namespace"])
def test_an_id_of_another_machine_or_namespace_says_nothing(bucket, clock, lacks):
    """As in containers, which share a host's name and each have a process 1."""
    clock.acquire(bucket)
    aged(bucket, 0, process=GONE, **{lacks: "another"})
    clock.acquire(bucket)
    assert clock.s == pytest.approx(leases.STALE_S)


def test_a_folder_that_another_machine_has_locked_for_itself_alone_has_one_driver(tmp_path, clock):
    """Not every shared file system tells other machines of a lock."""
    store = Store.at(str(tmp_path))
    clock.acquire(store)
    aged(store, 0, machine="another", host="another")
    assert is_driven(store, "smoke")
    clock.acquire(store)
    assert clock.s == pytest.approx(leases.STALE_S)


def test_a_record_of_an_earlier_release_is_read(store, clock):
    clock.acquire(store)
    record = json.loads(store.read(path_of("smoke")))
    for later in ("machine", "namespace", "renewals"):
        del record[later]
    store.write_json(path_of("smoke"), record | {"of a later release": 1})
    assert holder_of(store, "smoke").owner == record["owner"]
    clock.acquire(store)
    assert clock.s == pytest.approx(0 if store.is_local else leases.STALE_S)


def test_a_renewal_that_hangs_does_not_hold_up_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_EVERY_S", 0.02)
    lease, over, hung = acquire(Store.at(str(tmp_path)), "smoke"), threading.Event(), []
    swap = leases.compare_and_swap

    def hang_once(*args):
        if not hung:
            hung.append(True)
            over.wait()
        return swap(*args)

    monkeypatch.setattr(leases, "compare_and_swap", hang_once)
    lease.start()
    while lease.holder.renewals < 3:
        over.wait(0.01)
    assert hung and lease.lost is None
    lease.release()
    over.set()
    assert holder_of(lease.store, "smoke").released


def test_a_machine_that_was_suspended_is_overdue(tmp_path, monkeypatch):
    lease = acquire(Store.at(str(tmp_path)), "smoke")
    assert not lease.is_overdue
    later = leases.suspend_aware_clock() + 100
    monkeypatch.setattr(leases, "suspend_aware_clock", lambda: later)
    assert lease.is_overdue
    lease.check_if_overdue()
    assert not lease.is_overdue


def test_a_driver_of_this_machine_that_is_gone_is_not_waited_for(bucket, clock):
    clock.acquire(bucket)
    aged(bucket, 0, process=GONE)
    clock.acquire(bucket)
    assert clock.s == 0


@pytest.mark.slow
def test_a_released_lease_is_free_at_once(store, clock):
    with only_driver(store, "smoke") as first:
        assert is_driven(store, "smoke") and not is_driven(store, "another")
        assert first.holder.attempt == 1
    assert not is_driven(store, "smoke")
    with only_driver(store, "smoke") as second:
        assert second.holder.attempt == 2


@pytest.mark.slow
def test_of_many_drivers_at_once_one_works(store, monkeypatch):
    """In a bucket the others are refused at its next renewal, which comes soon here."""
    monkeypatch.setattr(leases, "RENEW_EVERY_S", 0.2)
    at_work, refused = [], []
    barrier, over = threading.Barrier(6), threading.Event()

    def work():
        barrier.wait()
        try:
            with only_driver(store, "smoke") as lease:
                at_work.append(lease.owner)
                over.wait()
        except ValueError as error:
            refused.append(str(error))
        if len(refused) == 5:
            over.set()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(at_work) == 1 and len(refused) == 5


@pytest.mark.slow
def test_a_store_that_fails_for_a_while_ends_no_lease(s3, bucket, clock):
    mine = clock.acquire(bucket)
    s3.faults.rate, s3.faults.kinds = 0.3, ("500", "reset", "lost")
    for _ in range(10):
        mine.check()
    assert isinstance(mine, Lease) and mine.lost is None


@pytest.mark.slow
def test_a_damaged_record_names_no_holder(store, clock):
    store.write(path_of("smoke"), b"{half")
    assert holder_of(store, "smoke") is None
    assert clock.acquire(store).holder.attempt == 1
