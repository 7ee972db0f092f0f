"""Lease, claim and commit under all interleavings of two drivers, each paused for any time.

Every driver runs the real code against a bucket in memory. Before each request it may be paused
until the other counts it as dead, or for ever. So that the exploration is known to see faults, it
must find one in each weaker protocol.
"""

import json
from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise
from types import SimpleNamespace

import pytest
from interleave import Bucket, Found, World, explore

from pipelines.executor import commit as commits
from pipelines.executor import driver as drivers
from pipelines.models import champions
from pipelines.runs import claims as claiming
from pipelines.runs import lease as leases
from pipelines.runs.claims import Claims
from pipelines.runs.context import Result
from pipelines.runs.execution import Execution
from pipelines.runs.lease import STALE_S, acquire
from pipelines.store import artifacts
from pipelines.store.artifacts import MANIFEST, Store, sha256
from pipelines.store.fenced import OwnerChanged

ROOT, FOLDER = "s3://bucket", "nodes/train/base/E0_0-0123456789abcdef"
WEIGHTS = f"{FOLDER}/raw.safetensors"
NODE = SimpleNamespace(
    kind="train", name="base/E0_0", path="train/base/E0_0", inputs={}, external={}, settings={}
)
VERDICT = SimpleNamespace(node=NODE, folder=FOLDER, fingerprint="0123456789abcdef")


class Clock:
    """Of one driver. While it waits, as much time passes as makes the other seem dead."""

    def __init__(self):
        self.s = 0.0

    def now(self):
        return self.s

    def sleep(self, seconds):
        self.s += STALE_S


@pytest.fixture(autouse=True)
def bucket(monkeypatch):
    """An empty bucket for each world, and no clock or chance in what is written."""
    of = SimpleNamespace(bucket=Bucket(), drawn=Counter())

    def drawn():
        import greenlet

        of.drawn[id(greenlet.getcurrent())] += 1
        return SimpleNamespace(hex=f"{len(of.drawn)}{of.drawn[id(greenlet.getcurrent())]}".zfill(8))

    fixed = SimpleNamespace(now=lambda _: datetime(2026, 1, 1, tzinfo=UTC))
    clock = SimpleNamespace(time=lambda: 0.0, monotonic=lambda: 0.0)
    monkeypatch.setattr(artifacts, "filesystem", lambda url: (of.bucket, url))
    monkeypatch.setattr(leases, "uuid", SimpleNamespace(uuid4=drawn))
    for module in (leases, claiming):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(leases, "suspend_aware_clock", lambda: 0.0)
    for module in (leases, champions):
        monkeypatch.setattr(module, "datetime", fixed)
    monkeypatch.setattr(commits, "now", lambda: "2026-01-01T00:00:00+00:00")
    return of


def fresh(of):
    of.bucket = Bucket()
    of.drawn = Counter()
    return of.bucket


def the_lease(store, pipeline, clock):
    """The pipeline's lease; None if it is refused: then it is as if the driver began later."""
    try:
        return acquire(store, pipeline, sleep=clock.sleep, now=clock.now)
    except ValueError:
        return None


# -- two drivers, one node -------------------------------------------------------------------------


def build(pipeline, seconds, protocol, committed, claimed):
    """A driver that builds the node unless it is there; → what runs in its process."""

    def body():
        store, clock = Store(ROOT), Clock()
        lease = the_lease(store, pipeline, clock)
        if lease is None:
            return
        claims = Claims(store, pipeline, lease, clock.now)
        for _ in range(2):
            if claims.acquire(FOLDER) is None:
                break
            clock.sleep(1)
        else:
            return
        claimed.append(pipeline)
        if (found := store.manifest(FOLDER)) is None:
            try:
                found = protocol(store, lease, claims, seconds)
            except OwnerChanged:
                return
        committed.append(found)
        claims.release(FOLDER)

    return body


def work(store, seconds):
    store.write(WEIGHTS, f"weights of {seconds}".encode())
    return Result(files=["raw.safetensors"])


def real(store, lease, claims, seconds):
    """As the runner does it."""
    result = work(claims.fenced(FOLDER), seconds)
    lease.check()
    claims.check(FOLDER)
    return commits.commit(store, VERDICT, result, {}, seconds, claims.commit)


def fence_before_commit(store, lease, claims, seconds):
    """As it was: checks before the commit, and an unconditional write."""
    result = work(store, seconds)
    lease.check()
    claims.check(FOLDER)
    return commits.commit(store, VERDICT, result, {}, seconds)


def fence_before_manifest(store, lease, claims, seconds):
    """The manifest is written under the claim, but without the seal."""
    result = work(claims.fenced(FOLDER), seconds)
    fenced = claims.fenced(FOLDER)

    def declare(folder, manifest):
        fenced.write(f"{folder}/{MANIFEST}", manifest)

    return commits.commit(store, VERDICT, result, {}, seconds, declare)


def unfenced_files(store, lease, claims, seconds):
    """The commit is right, but workers write where they like."""
    result = work(store, seconds)
    return commits.commit(store, VERDICT, result, {}, seconds, claims.commit)


def two_drivers(of, protocol, pipelines, at_once=False):
    """A has claimed the node when B begins, unless they begin at once."""

    def begin():
        bucket, committed, claimed = fresh(of), [], []
        bodies = {
            name: build(pipeline, seconds, protocol, committed, claimed)
            for name, pipeline, seconds in zip("AB", pipelines, (1.0, 2.0), strict=True)
        }

        def wrong():
            data = bucket.objects.get(f"bucket/{FOLDER}/{MANIFEST}")
            if data is None:
                return "a committed node has no manifest" if committed else None
            if len(bucket.past[f"bucket/{FOLDER}/{MANIFEST}"]) > 1:
                return "a manifest was replaced by another"
            manifest = json.loads(data)
            if any(found != manifest for found in committed):
                return "a driver goes on with another manifest than the store's"
            for name, entry in manifest["files"].items():
                if sha256(bucket.objects[f"bucket/{FOLDER}/{name}"]) != entry["sha256"]:
                    return f"{name} is not what the manifest says"
            return None

        world = World(bucket, bodies)
        while not (at_once or claimed):
            world.step(0)
        return world, wrong

    return begin


PIPELINES = pytest.mark.parametrize(
    "pipelines", [("one", "one"), ("one", "two")], ids=["same pipeline", "two pipelines"]
)


@pytest.mark.slow
@PIPELINES
def test_a_node_has_one_manifest_that_matches_its_files(bucket, pipelines):
    states, _ = explore(two_drivers(bucket, real, pipelines))
    assert states > 500


@pytest.mark.soak
@PIPELINES
def test_so_it_does_if_both_begin_at_once(bucket, pipelines):
    explore(two_drivers(bucket, real, pipelines, at_once=True))


@pytest.mark.slow
@PIPELINES
@pytest.mark.parametrize("weaker", [fence_before_commit, fence_before_manifest, unfenced_files])
def test_the_exploration_finds_the_faults_of_weaker_protocols(bucket, weaker, pipelines):
    with pytest.raises(Found, match="A: put"):
        explore(two_drivers(bucket, weaker, pipelines))


# -- the run's record ------------------------------------------------------------------------------


def keep_record(of, fenced):
    def begin():
        bucket = fresh(of)

        def body():
            store = Store(ROOT)
            lease = the_lease(store, "one", Clock())
            if lease is not None:
                run = Execution(id="one-1", pipeline="one", fingerprint="f", attempt=0)
                run.attempt = lease.holder.attempt
                try:
                    run.save(lease.fenced("executions") if fenced else store)
                except OwnerChanged:
                    return

        def wrong():
            key = "bucket/executions/one-1.json"
            attempts = [json.loads(data)["attempt"] for data in bucket.past.get(key, ())]
            if attempts and json.loads(bucket.objects[key])["attempt"] < max(attempts):
                return "the record of a successor was overwritten"
            return None

        return World(bucket, {"A": body, "B": body}), wrong

    return begin


def test_a_successors_record_is_never_overwritten(bucket):
    explore(keep_record(bucket, fenced=True))
    with pytest.raises(Found, match="was overwritten"):
        explore(keep_record(bucket, fenced=False))


# -- the champion ----------------------------------------------------------------------------------


def offer(fingerprint, gate=True):
    """A driver whose gate compares its ensemble with the champion, and which settles then."""
    folder = f"nodes/promote/m-{fingerprint}"

    def body():
        store = Store(ROOT)
        book = champions.read(store, "m")
        promoted = SimpleNamespace(
            node=SimpleNamespace(id="promote/m"), fingerprint=fingerprint, folder=folder
        )
        made = SimpleNamespace(spec=SimpleNamespace(name="m"), verdicts={"promote/m": promoted})
        champion = book.champion.fingerprint if book.champion else None
        why = f"compared with {champion}" if gate else "compared with something"
        info = {"wins": True, "champion": champion if gate else champions.ANY, "why": why}
        manifests = {"promote/m": {}, "gate/m": {"info": info, "metrics": {}}}
        run = Execution(id=f"m-{fingerprint}", pipeline="m", fingerprint="f", attempt=1)
        drivers.register_ensemble(made, store, run, manifests)

    return body


def settle(of, gate):
    def begin():
        bucket = fresh(of)
        for fingerprint in ("aaaa", "bbbb", "0000"):
            bucket.objects[f"bucket/nodes/promote/m-{fingerprint}/ensemble.json"] = b"{}"
        offer("0000")()
        bodies = {"A": offer("aaaa", gate), "B": offer("bbbb", gate)}

        def wrong():
            history = json.loads(bucket.objects["bucket/registry/m.json"])["history"]
            line = [e for e in history if e["what"] == "promoted"]
            for before, after in pairwise(line):
                if after["why"] != f"compared with {before['fingerprint']}":
                    return f"{after['fingerprint']} replaced what it was not compared with"
            return None

        return World(bucket, bodies), wrong

    return begin


@pytest.mark.slow
def test_the_champion_was_compared_with_the_one_it_replaces(bucket, monkeypatch):
    monkeypatch.setattr(champions.time, "sleep", lambda _: None)
    explore(settle(bucket, gate=True))
    with pytest.raises(Found, match="replaced what it was not compared with"):
        explore(settle(bucket, gate=False))
