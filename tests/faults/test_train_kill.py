"""SIGKILL to whatever trains one expert, by one worker and by two: the same bytes at every step."""

import json
import os
import random
import shutil
import tempfile
import time

import pytest
from kit import PATIENCE_S, descendants, driver, kill, title, wait_for_the_dead
from train_kit import NODE, PROGRAM, steps, write_spec

KILLS = int(os.environ.get("EDIFFI_SOAK_KILLS", "20"))
SEED = int(os.environ.get("EDIFFI_SOAK_SEED", "0"))
BATCH = 16  # of the smoke spec


class Own:
    """One expert by a number of workers, in stores that begin with the smoke run's data."""

    def __init__(self, smoke, root, **settings):
        self.smoke, self.root, self.settings = smoke, root, settings

    def driver(self, store, workers, **env):
        """A driver that trains it on in that store."""
        if not (self.root / store).exists():
            self.smoke.copy(self.root / store, "train", "adopt", "evaluate", "promote")
        spec = write_spec(self.root / f"{workers}.yaml", workers, **self.settings)
        log = self.root / f"{store}-{time.monotonic_ns()}.log"
        return driver(spec, self.root / store, log, PROGRAM, **env)

    def train(self, store, workers):
        with self.driver(store, workers) as running:
            assert running.finish() == 0, running.text()
        return running.text()

    def train_by_turns(self, store, *turns):
        """By so many workers until so many images are saved, then killed; the last to its end."""
        for workers, until in turns:
            with self.driver(store, workers) as running:
                if until is None:
                    assert running.finish() == 0, running.text()
                    break
                running.until(lambda: self.saved(store) >= until, f"{until} images")  # noqa: B023
                running.kill(workers=True)

    def folder(self, store):
        return next((self.root / store).glob(f"nodes/{NODE}-*"), self.root / "nothing")

    def weights(self, store):
        return {w: (self.folder(store) / f"{w}.safetensors").read_bytes() for w in ("ema", "raw")}

    def saved(self, store):
        """Images of the newest committed checkpoint; 0 before the first."""
        there = self.folder(store).glob("checkpoints/*/checkpoint.json")
        return max((int(m.parent.name.partition(".")[0]) for m in there), default=0)

    def is_writing(self, store):
        """Whether a checkpoint is half written."""
        folders = self.folder(store).glob("checkpoints/*")
        return any(not (f / "checkpoint.json").exists() for f in folders)

    def left_over(self, store):
        root = self.root / store
        return [
            *root.rglob(".*.tmp"),
            *root.glob("ray-train"),
            *root.glob("nodes/**/checkpoints/*"),
        ]


def workers_of(running):
    """The processes that train."""
    return [p for p in running.look() if "RayTrainWorker" in title(p)]


def is_done(store):
    return lambda: next(store.glob(f"nodes/{NODE}-*/manifest.json"), None)


@pytest.mark.soak
def test_kills_with_two_workers(smoke, tmp_path):
    """They end in the bytes of two that nobody killed."""
    own = Own(smoke, tmp_path, images=384)
    own.train("undisturbed", 2)

    with own.driver("killed", 2) as first:
        first.until(lambda: own.saved("killed") >= 64, "a checkpoint")
        kill(*workers_of(first)[:1])  # the other is left waiting for it
        first.until(lambda: own.saved("killed") >= 192, "more")
        first.kill(workers=True)
    assert "continues at" in first.text(), first.text()
    said = own.train("killed", 2)
    assert "continues at" in said
    assert own.weights("killed") == own.weights("undisturbed")
    assert own.left_over("killed") == []


def assert_same_stream(expected, found, images):
    """Every image with its own σ, once; and losses of steps that differ by rounding alone."""
    assert sorted(expected) == sorted(found) == list(range(images))
    for image, step in expected.items():
        assert found[image]["pictures"] == step["pictures"], image
        assert found[image]["sigma"] == step["sigma"], image
    for first in range(0, images, BATCH):
        losses = [sum(s[i]["loss"] for i in range(first, first + BATCH)) for s in (expected, found)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4), first


@pytest.mark.soak
@pytest.mark.timeout(3 * 3600)
def test_two_hundred_steps_by_two_workers_then_one_then_two(smoke, tmp_path):
    own = Own(smoke, tmp_path, images=3200)
    own.train("undisturbed", 2)
    own.train_by_turns("changed", (2, 1024), (1, 2048), (2, None))
    counts = {f.name.split("-")[-1] for f in (tmp_path / "changed/steps").iterdir()}
    assert counts == {"1.jsonl", "2.jsonl"}
    expected, found = steps(tmp_path / "undisturbed"), steps(tmp_path / "changed")
    assert_same_stream(expected, found, 3200)
    worst = max(abs(found[i]["loss"] / s["loss"] - 1) for i, s in expected.items())
    print(f"largest relative difference of an image's loss over 200 steps: {worst:.2g}")


@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("workers", [1, 2])
def test_random_kills(smoke, tmp_path, workers):
    """Of a training worker, the driver, any of Ray's processes, all at once, or amid a write."""
    own, rng = Own(smoke, tmp_path, images=1920, checkpoint_images=32), random.Random(SEED)
    own.train("undisturbed", workers)
    kills, jobs, seen = 0, 0, set()
    while kills < KILLS // 2:
        store = f"job{jobs}"
        while not is_done(tmp_path / store)():
            with own.driver(store, workers) as running:
                while running.process.poll() is None:
                    what = rng.choice(["worker", "worker", "driver", "ray", "pod", "write"])
                    least = own.saved(store) + 32 * rng.randint(1, 8)
                    wait_for(running, lambda: own.saved(store) >= least)  # noqa: B023
                    if what == "write":
                        wait_for(running, lambda: own.is_writing(store))  # noqa: B023
                    if running.process.poll() is not None or not (found := victims(running, what)):
                        continue
                    kill(*found)
                    kills += 1
                    print(f"{time.strftime('%H:%M:%S')} kill {kills}: {what}", flush=True)
                    if running.pid in found:
                        running.process.wait()
                code = running.finish()
                seen |= running.seen
                assert code <= 0, running.text()
        assert own.weights(store) == own.weights("undisturbed")
        assert own.left_over(store) == []
        shutil.rmtree(tmp_path / store / "nodes")
        jobs += 1
    wait_for_the_dead(seen)
    print(f"{kills} kills over {jobs} trainings by {workers}: the same bytes, nothing left")


def wait_for(running, reached):
    deadline = time.monotonic() + PATIENCE_S
    while running.process.poll() is None and not reached():
        assert time.monotonic() < deadline, running.text()
        time.sleep(0.01)
        running.look()


def victims(running, what):
    below = running.look()
    if what in ("worker", "write"):
        return workers_of(running)[-1:]
    if what == "ray":
        # Not an agent, with which Ray ends its node: on one machine that is all of Ray.
        ours = [p for p in below if title(p).startswith("ray::") and "Agent" not in title(p)]
        return ours[-1:]
    return [running.pid, *(below if what == "pod" else ())]


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_node_of_the_cluster_dies(smoke, tmp_path):
    """With one of two workers on it, again and again; another node takes its place."""
    from ray.cluster_utils import Cluster

    own = Own(smoke, tmp_path, images=1920)
    own.train("undisturbed", 2)
    place = tempfile.mkdtemp(dir="/tmp")  # sockets need a short path; others' Ray its own
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "temp_dir": place})
    try:
        node = cluster.add_node(num_cpus=1)
        with own.driver("killed", 2, RAY_ADDRESS=cluster.address) as running:
            for least in (256, 768, 1280):
                running.until(lambda: own.saved("killed") >= least, f"{least} images")  # noqa: B023
                raylet = node.all_processes["raylet"][0].process.pid
                assert any("RayTrainWorker" in title(p) for p in descendants(raylet))
                cluster.remove_node(node, allow_graceful=False)
                node = cluster.add_node(num_cpus=1)
            assert running.finish() == 0, running.text()
        print(running.text())
    finally:
        cluster.shutdown()
        shutil.rmtree(place, ignore_errors=True)
    assert own.weights("killed") == own.weights("undisturbed")
    manifest = json.loads(next(own.folder("killed").glob("manifest.json")).read_text())
    assert manifest["metrics"]["images"] == 1920
