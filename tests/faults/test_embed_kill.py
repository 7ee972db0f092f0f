"""SIGKILL to whatever takes part in an embedding job: every row once, every byte the same."""

import json
import os
import random
import shutil
import time

import pytest
import torch
from embed_kit import PROGRAM, Pool, embed, run_here, write_encoders, write_source, write_spec
from kit import PATIENCE_S, descendants, driver, kill, title

from pipelines.steps import embed as embed_step

KILLS = int(os.environ.get("EDIFFI_SOAK_KILLS", "20"))
SEED = int(os.environ.get("EDIFFI_SOAK_SEED", "0"))


class Own:
    """A data set, specs that embed it, and what one process made of it, undisturbed."""

    def __init__(self, root, shards, rows):
        self.root, self.shards, self.rows = root, shards, rows
        encoders = write_encoders(root / "encoders")
        for i in range(shards):
            spoilt = {"image": lambda data: data[: len(data) // 2]} if i % 4 == 1 else {}
            write_source(root / "source" / f"{i:02d}.parquet", i, rows, **spoilt)
        apart = {"decode": {"actors": 1}}
        self.spec, self.apart = (
            write_spec(root / f"{name}.yaml", root / "source", encoders, how)
            for name, how in (("together", {}), ("apart", apart))
        )
        self.undisturbed = Pool(root / "undisturbed")
        threads = torch.get_num_threads()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(embed_step, "run", run_here)
            embed(self.spec, self.undisturbed.root)
        torch.set_num_threads(threads)  # which the stages set

    def driver(self, store, spec=None, **env):
        log = self.root / f"{store}.log"
        return driver(spec or self.spec, self.root / store, log, PROGRAM, **env)

    def check(self, pool):
        """All rows are there once, as if nothing had happened."""
        bad = self.shards // 4
        assert pool.bytes() == self.undisturbed.bytes() and len(pool.bytes()) == self.shards
        assert pool.records() == self.undisturbed.records()
        assert sum(len(f["faults"]) for f in pool.records().values()) == bad
        keys = pool.keys()
        assert len(keys) == len(set(keys)) == self.shards * self.rows - bad
        assert pool.strays() == []
        manifest, undisturbed = (
            json.loads(next(p.root.glob("nodes/embed/train-*/manifest.json")).read_text())
            for p in (pool, self.undisturbed)
        )
        assert manifest["fingerprint"] == undisturbed["fingerprint"]
        assert manifest["files"]["dataset.parquet"] == undisturbed["files"]["dataset.parquet"]


def assert_sound(pool, undisturbed):
    """At any moment whatever has a shard's name is a whole shard."""
    for name, data in pool.bytes().items():
        assert data == undisturbed[name], name
    pool.records()
    assert pool.strays() == []


def workers(running, actor):
    """Ray's processes that are, or are not, actors of the job."""
    found = {p: title(p) for p in running.look()}
    return [
        p
        for p, t in found.items()
        # With an agent Ray ends its node: on one machine all of Ray, and the driver's job with it.
        if t.startswith("ray::") and "Agent" not in t and ("MapWorker" in t) == actor
    ]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return Own(tmp_path_factory.mktemp("own"), shards=16, rows=24)


@pytest.mark.soak
def test_pools_of_actors_and_one_for_all_make_the_same_shards(own):
    """Four stages' actors on two CPUs, or one actor a CPU that does all their work."""
    with own.driver("apart", own.apart) as running:
        assert running.finish() == 0, running.text()
    own.check(Pool(own.root / "apart"))


@pytest.mark.soak
def test_kills_of_a_worker_an_actor_and_the_driver(own):
    """What was done before a kill is not written again, neither by Ray nor by the next driver."""
    rng, pool, safe = random.Random(SEED), Pool(own.root / "killed"), {}
    undisturbed = own.undisturbed.bytes()

    def shards(least):
        return lambda: len(pool.done()) >= least and pool.done()

    with own.driver("killed") as first:
        for actor, least in ((False, 1), (True, rng.randint(2, 4))):
            safe |= first.until(shards(least), f"{least} shards")
            pids = workers(first, actor)
            assert pids or not actor, "no actor is at work"
            kill(*pids[:1])
        safe |= first.until(shards(len(safe) + rng.randint(1, 3)), "some shards more")
        first.kill(workers=True)
    done = pool.done()
    kept = sum(f["rows"] for f in pool.records().values())
    assert_sound(pool, undisturbed)
    assert len(done) < own.shards, "the kill never came before the end"
    assert {name: done[name] for name in safe} == safe
    with own.driver("killed") as second:
        assert second.finish() == 0, second.text()
    after = pool.done()
    assert {name: after[name] for name in done} == done
    encoded_now = int(second.text().split()[-1])
    assert encoded_now == len(pool.keys()) - kept
    own.check(pool)


@pytest.mark.soak
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("spec", ["spec", "apart"])
def test_random_kills(tmp_path, spec):
    """Of the driver, a worker, an actor, or all of them, until there were enough."""
    own, rng, kills, jobs = Own(tmp_path, shards=64, rows=16), random.Random(SEED), 0, 0
    undisturbed = own.undisturbed.bytes()
    while kills < KILLS // 2:
        name, ended, safe = f"job{jobs}", False, {}
        pool = Pool(tmp_path / name)
        while not ended:
            with own.driver(name, getattr(own, spec)) as running:
                while running.process.poll() is None:
                    least = len(pool.done()) + rng.randint(1, 12)
                    deadline = time.monotonic() + PATIENCE_S
                    while running.process.poll() is None and len(pool.done()) < least:
                        assert time.monotonic() < deadline, running.text()
                        time.sleep(0.01)
                    safe |= pool.done()
                    if running.process.poll() is not None:
                        break
                    what = rng.choice(["driver", "worker", "actor", "actor", "pod"])
                    if what in ("driver", "pod"):
                        running.kill(workers=what == "pod")
                    elif pids := workers(running, what == "actor"):
                        kill(rng.choice(pids))
                    kills += 1
                    print(f"{time.strftime('%H:%M:%S')} kill {kills}: {what}", flush=True)
                ended = running.finish() == 0
                assert ended or running.process.returncode < 0, running.text()
            assert_sound(pool, undisturbed)
            now = pool.done()
            assert {s: now[s] for s in safe} == safe
            safe = now
        own.check(pool)
        jobs += 1


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_node_of_the_cluster_dies(tmp_path):
    """With its workers and what they held; another joins, or none does."""
    import tempfile

    from ray.cluster_utils import Cluster

    own = Own(tmp_path, shards=64, rows=16)
    for joins in (True, False):
        pool = Pool(tmp_path / f"joins-{joins}")
        place = tempfile.mkdtemp(dir="/tmp")  # sockets need a short path; others' Ray its own
        head = {"num_cpus": 1, "temp_dir": place}  # one of the two actors is elsewhere
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            node = cluster.add_node(num_cpus=2)
            raylet = node.all_processes["raylet"][0].process.pid
            with own.driver(pool.root.name, RAY_ADDRESS=cluster.address) as running:
                safe = running.until(lambda: len(pool.done()) >= 8 and pool.done(), "8 shards")  # noqa: B023
                assert any("MapWorker" in title(p) for p in descendants(raylet))
                cluster.remove_node(node, allow_graceful=False)
                if joins:
                    cluster.add_node(num_cpus=2)
                assert running.finish() == 0, running.text()
        finally:
            cluster.shutdown()
            shutil.rmtree(place, ignore_errors=True)
        assert {s: pool.done()[s] for s in safe} == safe
        own.check(pool)
