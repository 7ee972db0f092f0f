"""Every item reaches MLflow once, through outages and kills, and no step waits for it."""

import errno
import subprocess
import sys
import tempfile
import threading
import time

import pytest
from paths import ROOT, SMOKE
from record_kit import NODE, Driver, points, runs_of
from servers import silent

from pipelines.lineage import record
from pipelines.lineage.spool import Spool
from pipelines.store.fenced import OwnerChanged

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLED_DRIVER = """
import os, signal, sys
sys.path[:0] = [sys.argv[3]]
from pathlib import Path
from record_kit import Driver
driver = Driver(Path(sys.argv[1]), sys.argv[2])
driver.start()
for at in range(500):
    driver.report(at, loss=at / 2)
driver.store.write("nodes/picture.png", b"a picture")
driver.lineage.report("train/base/E0_0", {"time_ms": 1, "picture": "nodes/picture.png"})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_server_killed_and_started_again_has_every_point_once(driver, server):
    server.start()
    mine = driver(server.uri)
    mine.start()
    waits = []

    def work(start):
        for at in range(start, start + 1000):
            before = time.perf_counter()
            mine.report(at, loss=at / 2, gradient_norm=1.0)
            waits.append(time.perf_counter() - before)

    work(0)
    mine.until(lambda: mine.lineage.spool.delivered > 0, "its first delivery")
    server.kill()
    work(1000)
    mine.until(lambda: mine.lineage.delivery.outage, "noticing the outage")
    work(2000)
    server.start()
    mine.until(lambda: not mine.lineage.delivery.outage, "noticing the end of it")
    work(3000)
    mine.close()

    assert points(server.uri, "loss") == [(at, at / 2) for at in range(4000)]
    assert len(points(server.uri, "gradient_norm")) == 4000
    away, back = mine.said
    assert " is unreachable (connection " in away, away
    assert "; the run continues" in away
    assert "is reachable again" in back
    # A call to the server takes 50 ms, one to a dead one longer: no report waited for any.
    assert sorted(waits)[len(waits) // 2] < 0.005 and sum(waits) < 4.0
    assert not mine.lineage.spool.path.parent.exists()


def test_the_next_driver_delivers_what_a_killed_one_spooled(driver, server, tmp_path):
    here = ROOT / "tests/kits"
    end = subprocess.run(
        [sys.executable, "-c", KILLED_DRIVER, tmp_path / "store", server.uri, here],
        capture_output=True,
        text=True,
    )
    assert end.returncode == -9, end.stderr
    server.start()
    second = driver(server.uri)
    assert second.execution.attempt == 2
    second.start()
    second.report(500, loss=250.0)
    second.close()
    assert points(server.uri, "loss") == [(at, at / 2) for at in range(501)]
    found = runs_of(server.uri)
    assert len(found[""]) == len(found[NODE]) == 1
    [picture] = second.lineage.writer.client.list_artifacts(found[NODE][0].info.run_id, "samples")
    assert picture.path == "samples/picture.png"


def test_the_next_run_delivers_what_a_finished_one_could_not(driver, server):
    first = driver(server.uri)
    first.start()
    first.report(7, loss=0.5)
    before = time.monotonic()
    first.close(outage_timeout_s=1.0)
    assert time.monotonic() - before < 30
    assert "4 items are not yet in MLflow (connection refused)" in first.said[-1]
    assert "the next run of the same command delivers them" in first.said[-1]

    server.start()
    second = driver(server.uri)
    assert second.execution.id != first.execution.id
    second.close()
    assert points(server.uri, "loss") == [(7, 0.5)]
    states = {r.data.tags["ediffi.execution"]: r.info.status for r in runs_of(server.uri)[""]}
    assert states == {first.execution.id: "FINISHED", second.execution.id: "FINISHED"}
    assert not second.lineage.spool.path.parent.exists()


def test_a_server_that_never_answers_delays_nothing(driver, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with silent() as uri:
        mine = driver(uri)
        mine.start()
        before = time.monotonic()
        for at in range(1000):
            mine.report(at, loss=0.5)
        assert time.monotonic() - before < 1.0, "a report waited for the server"
        mine.until(lambda: mine.said, "noticing")
        before = time.monotonic()
        mine.close(timeout_s=120, outage_timeout_s=1)
        assert time.monotonic() - before < 30
    assert "is unreachable (timed out)" in mine.said[0]
    assert "1,003 items are not yet in MLflow" in mine.said[-1]


def test_rejected_items_are_reported_once_and_delay_nothing(driver):
    mine = driver()
    mine.start()
    for at in range(100):
        mine.report(at, loss=0.5)
        if at % 10 == 0:
            mine.report(at, **{"no/such?key": 1.0})
    mine.close()
    assert len(points(mine.lineage.uri, "loss")) == 100
    [refused, summary] = mine.said
    assert refused.startswith(f"MLflow rejects metrics {NODE} (") and "no/such?key" in refused
    assert summary == f"the MLflow record lacks 10 items that MLflow rejected: metrics {NODE} (10)"


def test_an_unwritable_spool_folder_is_replaced_by_another(driver, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "store/mlflow-spool").write_text("in the way")
    mine = driver()
    mine.start()
    mine.report(1, loss=0.5)
    place = mine.lineage.spool.path.parent
    assert place.parent == tmp_path and place.stat().st_mode & 0o777 == 0o700
    mine.close()
    assert points(mine.lineage.uri, "loss") == [(1, 0.5)]
    [said] = mine.said
    assert "mlflow-spool cannot be written" in said


@pytest.mark.parametrize("which", ["sqlite", "server"])
def test_items_delivered_twice_are_recorded_once(driver, server, which):
    """As after a kill between a delivery and the record of it."""
    if which == "server":
        server.start()
    uri = server.uri if which == "server" else None
    first = driver(uri)
    first.start()
    for at in range(50):
        first.report(at, loss=at / 2, broken=float("nan"), endless=float("inf"))
    spool = first.lineage.spool
    first.until(lambda: spool.is_empty, "the delivery of all")
    first.lineage.delivery.finish(60, 60)
    spool.position_file.unlink()

    second = driver(uri)
    second.report(50, loss=25.0)
    second.close()
    address = second.lineage.uri
    assert points(address, "loss") == [(at, at / 2) for at in range(51)]
    assert len(points(address, "broken")) == len(points(address, "endless")) == 50
    assert len(runs_of(address)[""]) == len(runs_of(address)[NODE]) == 1


def test_reporting_a_row_takes_a_fraction_of_a_millisecond(driver, capsys):
    mine: Driver = driver()
    mine.start()
    before = time.perf_counter()
    for at in range(10_000):
        mine.report(at, loss=0.5, gradient_norm=1.0, images_per_s=3.0)
    spent = time.perf_counter() - before
    with capsys.disabled():
        print(f"\n{spent / 10_000 * 1e6:.0f} µs a report")
    mine.close()
    assert spent / 10_000 < 0.0005
    assert len(points(mine.lineage.uri, "loss")) == 10_000


def test_a_driver_that_was_paused_records_nothing_after_another_has_taken_over(driver):
    """Its successor has a spool of its own, and records the whole run."""
    taken_over = threading.Event()

    def check():
        if taken_over.is_set():
            raise OwnerChanged("another driver has taken over")

    paused = driver(None, SMOKE, check)
    paused.start()
    paused.report(0, loss=1.0)
    paused.until(lambda: paused.lineage.delivery.pending == 0, "its first delivery")
    taken_over.set()
    successor = driver()
    assert successor.execution.id == paused.execution.id
    assert successor.lineage.spool.path != paused.lineage.spool.path
    successor.start()
    successor.report(1, loss=2.0)
    successor.close()
    paused.report(2, loss=3.0)
    paused.start()
    paused.until(lambda: not paused.lineage.delivery.thread.is_alive(), "the end of its delivery")
    paused.lineage.abandon()
    assert not paused.lineage.spool.path.parent.exists()
    assert points(successor.lineage.uri, "loss") == [(0, 1.0), (1, 2.0)]
    assert [run.info.status for run in runs_of(successor.lineage.uri)[""]] == ["FINISHED"]


def test_what_is_left_of_a_run_that_was_recorded_to_its_end_opens_nothing_again(driver):
    first = driver()
    first.close()
    left = Spool(first.lineage.spool.path)
    left.append({"do": "open", "time_ms": 1, "tags": {"ediffi.state": "running"}})
    left.close()
    second = driver()
    assert second.execution.id != first.execution.id
    second.close()
    statuses = [run.info.status for run in runs_of(second.lineage.uri)[""]]
    assert statuses == ["FINISHED", "FINISHED"] and not left.path.exists()


@pytest.fixture
def full(monkeypatch):
    """A disk that takes nothing more while this is set."""
    full = threading.Event()
    full.set()

    def unless_full(method):
        def call(spool, *args):
            if full.is_set():
                raise OSError(errno.ENOSPC, "No space left on device")
            return method(spool, *args)

        return call

    for name in ("append", "_note"):
        monkeypatch.setattr(Spool, name, unless_full(getattr(Spool, name)))
    return full


@pytest.mark.parametrize("until", ["a row more", "the end", None])
def test_a_full_disk_costs_the_record_nothing(driver, full, until):
    full.clear()
    mine = driver()
    full.set()
    mine.start()
    for at in range(3):
        mine.report(at, loss=at / 2)
    assert len(mine.lineage.unwritten) == 4
    if until == "a row more":
        full.clear()
    mine.report(3, loss=1.5)
    assert bool(mine.lineage.unwritten) == full.is_set()
    if until == "the end":
        threading.Timer(1.0, full.clear).start()
    mine.close()
    assert points(mine.lineage.uri, "loss") == [(at, at / 2) for at in range(4)]
    assert [run.info.status for run in runs_of(mine.lineage.uri)[""]] == ["FINISHED"]
    told = "\n".join(mine.said)
    assert "waits in memory" in told and "lacks" not in told and "not yet in MLflow" not in told
    assert not mine.lineage.spool.path.exists()


def test_what_neither_disk_nor_mlflow_takes_waits_for_either(driver, server, full):
    full.clear()
    server.start()
    mine = driver(server.uri)
    mine.start()
    mine.until(lambda: mine.lineage.delivery.pending == 0, "delivery")
    server.kill()
    full.set()
    mine.report(0, loss=0.5)
    threading.Timer(2.0, full.clear).start()  # while the end is waited for
    mine.close(outage_timeout_s=4.0)
    told = "\n".join(mine.said)
    assert "2 items are not yet in MLflow (connection" in told and "lacks" not in told
    server.start()
    driver(server.uri).close()
    assert points(server.uri, "loss") == [(0, 0.5)]
    assert {run.info.status for run in runs_of(server.uri)[""]} == {"FINISHED"}


def test_a_command_that_runs_nothing_delivers_what_is_left(driver, server):
    first = driver(server.uri)
    first.report(7, loss=0.5)
    first.start()
    first.report(8, loss=0.25)
    first.close(outage_timeout_s=0.5)
    told = []
    server.start()
    record.deliver_left(first.plan.spec, first.store, told.append)
    assert points(server.uri, "loss") == [(8, 0.25)]
    assert [run.info.status for run in runs_of(server.uri)[""]] == ["FINISHED"]
    assert "MLflow has now what smoke-" in told[-1]
    assert not first.lineage.spool.path.exists()
    told.clear()
    record.deliver_left(first.plan.spec, first.store, told.append)
    assert told == []
