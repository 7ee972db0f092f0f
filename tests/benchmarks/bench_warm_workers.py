"""Small trainings one after another: in a warm worker, and each in one that is started for it.

Of 64 images by the smoke spec's network, on its data, which are made first. Both ways take turns in
one Ray on this machine; a node's time is from the call of its step to the result, so it has no
plan, commit or record. The first warm one starts the worker and is told apart. The weights of all
must be the same bytes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from harness import report

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/kits"), str(ROOT / "tests/benchmarks")]

from train_kit import context_of, verdict_of, write_spec  # noqa: E402

NODES, IMAGES = 12, 64


def contexts(store: Path, spec: Path, count: int) -> Any:
    """Context, settings and inputs of the spec's root, in a new folder each."""
    import ray

    from pipelines.runs.context import ProgressBoard

    made, verdict = verdict_of(spec, store)
    board = ray.remote(num_cpus=0)(ProgressBoard).remote()
    for _ in range(count):
        yield context_of(made, verdict, store, f"bench/{time.time_ns()}", board=board)


def main() -> None:
    from bench_node import prepared

    from pipelines.executor.ray_cluster import start_ray
    from pipelines.steps import train
    from pipelines.training.warm import POOL

    seconds: dict[str, list[float]] = {"warm": [], "single": []}
    hashes = set()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, store = prepared(folder)
        start_ray(2)
        nodes = {
            way: contexts(
                store, write_spec(folder / f"{way}.yaml", images=IMAGES, keep_warm=warm), NODES
            )
            for way, warm in (("warm", True), ("single", False))
        }
        for _ in range(NODES):
            for way, of in nodes.items():
                work = next(of)
                began = time.monotonic()
                hashes.add(train.step(*work).info["weights_sha256"])
                seconds[way].append(time.monotonic() - began)
        POOL.close(60)
    assert len(hashes) == 1, hashes
    first, *later = seconds["warm"]
    warm, single = median(later), median(seconds["single"])
    report(
        "Small trainings in a warm worker",
        [
            f"{NODES} trainings of {IMAGES} images each way, by turns; medians.",
            "",
            "| | seconds a training |",
            "|---|---|",
            f"| in a worker of its own | {single:.2f} |",
            f"| the first in a warm worker, which it starts | {first:.2f} |",
            f"| the next ones | {warm:.2f} |",
            "",
            f"A training in a warm worker takes {warm / single:.2f} of the time of one on its own.",
        ],
    )


if __name__ == "__main__":
    main()
