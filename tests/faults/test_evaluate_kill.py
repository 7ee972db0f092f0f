"""An evaluation on Ray actors, of which some are killed: the numbers of one process."""

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kit import PATIENCE_S, descendants, kill, spec_with, title, wait_for_the_dead

from pipelines.dag import plan, sources
from pipelines.evaluation.scores import from_json
from pipelines.executor.ray_cluster import start_ray
from pipelines.executor.run_step import run_step
from pipelines.runs.context import Context
from pipelines.spec import loading
from pipelines.steps import evaluate
from pipelines.store.artifacts import Store

NODE, BATCH = "evaluate/sr32/ensemble", 8
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ray_here():
    import ray

    start_ray(3)
    yield
    ray.shutdown()


class Evaluation:
    """The smoke run's evaluation of its second stage, again, in batches of eight pictures."""

    def __init__(self, smoke, root):
        self.store = Store.at(str(smoke.copy(root / "store", "evaluate")))
        spec = loading.load(spec_with(root / "spec.yaml", lambda raw: None))
        self.made = plan.make(spec, self.store, sources.identify_all(spec))
        self.verdict = self.made.verdicts[NODE]

    def node(self, actors):
        node = self.verdict.node
        runtime = {**node.runtime, "actors": actors, "batch": BATCH}
        return replace(node, cpus=actors, runtime=runtime)

    def context(self, folder, actors):
        node = self.node(actors)
        manifests = {
            role: self.made.verdicts[i].manifest
            or self.store.manifest(self.made.verdicts[i].folder)
            for role, i in node.inputs.items()
        }
        return Context(
            node=node.id,
            fingerprint=self.verdict.fingerprint,
            store=self.store,
            folder=folder,
            cpus=node.cpus,
            runtime=dict(node.runtime),
            manifests=manifests,
            board=None,
        )

    @property
    def inputs(self):
        return {r: self.made.verdicts[i].folder for r, i in self.verdict.node.inputs.items()}

    def in_process(self, folder):
        settings = json.loads(json.dumps(self.verdict.node.settings))
        return evaluate.step(self.context(folder, 1), settings, self.inputs)

    def on_actors(self, folder, actors):
        return run_step(self.node(actors), self.context(folder, actors), self.inputs)

    def parts(self, folder):
        return sorted(self.store.files(f"{folder}/parts/{BATCH}"))

    def compare(self, folder, result, other, expected):
        assert result.metrics.keys() == expected.metrics.keys()
        for name, value in expected.metrics.items():
            assert result.metrics[name] == pytest.approx(value, rel=0, abs=1e-9, nan_ok=True), name
        for file in ("scores.json", "losses.json"):
            mine, theirs = (self.store.read_json(f"{f}/{file}") for f in (folder, other))
            assert mine.keys() == theirs.keys()
            for name, values in theirs.items():
                if isinstance(values, list):
                    torch.testing.assert_close(
                        from_json(mine[name]), from_json(values), rtol=0, atol=1e-9, equal_nan=True
                    )
        for file in ("samples.png", "captions.txt"):
            assert self.store.read(f"{folder}/{file}") == self.store.read(f"{other}/{file}")


@pytest.fixture(scope="module")
def again(smoke, tmp_path_factory):
    return Evaluation(smoke, tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def alone(again):
    return again.in_process("alone")


def actors():
    return [pid for pid in descendants(os.getpid()) if title(pid).startswith("ray::Worker")]


@pytest.mark.soak
def test_two_workers_of_which_one_is_killed(again, alone, ray_here):
    """Its chunk goes back, another takes its place, and nothing that was done is done again."""
    killed = []

    def strike():
        deadline = time.monotonic() + PATIENCE_S
        while len(again.parts("two")) < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        killed.extend(actors()[:1])
        killed.append(len(again.parts("two")))
        kill(*killed[:1])

    thread = threading.Thread(target=strike)
    thread.start()
    result = again.on_actors("two", 2)
    thread.join()
    assert len(killed) == 2 and killed[1] < len(again.parts("two")), "killed after the end"
    again.compare("two", result, "alone", alone)
    assert again.parts("two") == again.parts("alone")


def test_three_workers_continue_what_one_has_begun(again, alone, ray_here):
    """As after a kill of the node: some of the parts are there, and stay as they are."""
    kept = again.parts("alone")[1::2]
    for name in kept:
        data = again.store.read(f"alone/parts/{BATCH}/{name}")
        again.store.write(f"three/parts/{BATCH}/{name}", data)
    files = [Path(again.store.full(f"three/parts/{BATCH}/{name}")) for name in kept]
    before = [file.stat().st_mtime_ns for file in files]
    result = again.on_actors("three", 3)
    again.compare("three", result, "alone", alone)
    assert [file.stat().st_mtime_ns for file in files] == before
    assert len(again.parts("three")) > len(kept)
    wait_for_the_dead(actors())  # they were told to end, which takes Ray a moment
