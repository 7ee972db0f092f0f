"""A plan of 10⁵ nodes: to plan it, to simulate it, and to record that one of its nodes changed.

python tests/benchmarks/bench_scale.py [--record] [--against CHECKOUT]

With ``--against`` the same is measured on another checkout, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import yaml

ROOT = Path(__file__).parents[2]
SIZES = (2_000, 100_000)
ROUNDS = 3
TRANSITIONS = 20

ROWS = {
    "plan": "to plan, in an empty store",
    "simulate": "to simulate the run on 64 CPUs",
    "first": "to record the run's begin",
    "transition": "to record a node's change, median",
    "worst": "to record a node's change, the longest",
    "read": "to read the record",
}


def spec_of(experts: int) -> dict[str, Any]:
    """The smoke spec with a tree of so many experts."""
    raw: dict[str, Any] = yaml.safe_load((ROOT / "pipelines/specs/smoke.yaml").read_text())
    base = raw["stages"]["base"]
    names = (f"E{level}_{i}" for level in range(20) for i in range(2**level))
    base |= {"experts": {next(names): {"images": 64} for _ in range(experts)}}
    base["ensemble"] = ["E0_0"]
    del base["single"], raw["stages"]["sr32"]
    return raw


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.process_time()
    return work(), time.process_time() - began


def measure(count: int, slow: bool) -> dict[str, float]:
    """CPU seconds of each of :data:`ROWS`, in this process.

    Args:
        slow: also what takes time for the square of the nodes in old checkouts.
    """
    from pipelines.dag import plan, sources
    from pipelines.planning.simulate import Task, simulate
    from pipelines.reports import tree
    from pipelines.runs.execution import begin, by_id, now
    from pipelines.spec.pipeline import Spec
    from pipelines.store.artifacts import Store

    spec = Spec.model_validate(spec_of(count))
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(folder)
        found: dict[str, float] = {}
        made, found["plan"] = timed(lambda: plan.make(spec, store, sources.identify_all(spec)))
        lengths = plan.path_lengths(made)
        tasks = [
            Task(
                name=i,
                seconds=1.0 + len(i) % 3,
                needs=v.node.dependencies,
                group="cpus",
                gang=v.node.cpus,
                path_length=lengths[i],
            )
            for i, v in made.verdicts.items()
        ]
        if slow:
            found["simulate"] = timed(lambda: simulate(tasks, {"cpus": 64}))[1]
        run = begin(made, store)
        for node, verdict in made.verdicts.items():
            run.nodes[node] = {
                "state": "waiting",
                "why": verdict.why,
                "folder": verdict.folder,
                "since": now(),
                "attempt": 1,
                "by": "host",
            }
        # An old checkout writes record and tree whole each time; a new one the tree when it is due.
        has_parts = hasattr(run, "touch")
        _, found["first"] = timed(lambda: run.save(store))
        took = []
        for node in list(made.verdicts)[:: max(1, len(made.verdicts) // TRANSITIONS)]:
            began = time.process_time()
            run.nodes[node]["state"] = "running"
            if has_parts:
                run.touch(node)
            else:
                shown = tree.build(made, run, {})
                store.write_json(f"executions/{run.id}.tree.json", shown)
            run.save(store)
            took.append(time.process_time() - began)
            if sum(took) > 60:
                break
        found["transition"], found["worst"] = statistics.median(took), max(took)
        read, found["read"] = timed(lambda: by_id(store, run.id))
        assert read.nodes == run.nodes
    return found


def in_checkout(checkout: Path, count: int, slow: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", str(count), *(["--slow"] if slow else [])]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def seconds(number: float | None) -> str:
    if number is None:
        return "–"
    return f"{number * 1000:.1f} ms" if number < 0.1 else f"{number:.2f} s"


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--measure", type=int)
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--against", type=Path)
    asked, rest = parser.parse_known_args()
    if asked.measure:
        print(json.dumps(measure(asked.measure, asked.slow)))
        return
    sys.argv[1:] = rest
    sides = {"now": ROOT, **({"before": asked.against} if asked.against else {})}
    lines = [f"A tree of experts; CPU time, medians of {ROUNDS} rounds, in turn."]
    for count in SIZES:
        rounds: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for _ in range(ROUNDS if count < 10_000 else 1):
            for side, checkout in sides.items():
                slow = side == "now" or count < 10_000
                rounds[side].append(in_checkout(checkout, count, slow))
        head = "".join(f" {side} |" for side in sides)
        lines += ["", f"| {count:,} experts |{head}", "|---|" + "---|" * len(sides)]
        for row, about in ROWS.items():
            values = [
                statistics.median(of[row] for of in rounds[side])
                if row in rounds[side][0]
                else None
                for side in sides
            ]
            lines.append(f"| {about} |" + "".join(f" {seconds(value)} |" for value in values))
    harness.report("A plan of 100,000 nodes", lines)


if __name__ == "__main__":
    main()
