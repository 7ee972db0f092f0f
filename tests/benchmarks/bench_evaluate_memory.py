"""What an evaluation holds in memory, for some pictures and for 32 times as many."""

from __future__ import annotations

import argparse
import multiprocessing
import re
import sys
import tempfile
import time
from pathlib import Path

from harness import report

sys.path.insert(0, str(Path(__file__).parents[1] / "kits"))

FEW, MANY, BATCH, SIDE = 128, 4096, 32, 64
STEPS = 1


def peak_mb() -> float:
    """The most that this process ever held, in MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def measure(count: int, held: bool) -> tuple[float, float, float, float]:
    """Evaluate in this process; → peaks before, after drawing and at the end in MB, and seconds.

    Args:
        count: number of pictures.
        held: draw all pictures first and hold them, instead of a stream.
    """
    import torch
    from evaluate_kit import job

    from ediffi_core.metrics import kernel_distance
    from pipelines.evaluation.parts import DRAWN, REAL
    from pipelines.evaluation.scoring import MAIN
    from pipelines.evaluation.workers import Workers, run
    from pipelines.models.stages import draw, load_stages
    from pipelines.store.artifacts import Store

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(folder)
        run(job(store, "warm", count=BATCH, batch=BATCH, sides=(SIDE,), steps=STEPS), Workers())
        of = job(store, count=count, batch=BATCH, sides=(SIDE,), steps=STEPS)
        before, start = peak_mb(), time.monotonic()
        if held:
            cond, real = of.source().read(range(count))
            stages = load_stages(store, of.stages, of.weights)
            drawn = draw(stages, cond, seed=0, batch=BATCH)[of.stages[-1]["name"]]
            assert len(drawn) == len(real) == count
            peak = peak_mb()
        else:
            parts = run(of, Workers())
            peak = peak_mb()
            kernel_distance(parts.features(DRAWN, MAIN), parts.features(REAL, MAIN))
        return before, peak, peak_mb(), time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--many", type=int, default=MANY)
    options, sys.argv[1:] = parser.parse_known_args()
    context = multiprocessing.get_context("spawn")
    lines = [
        "| | pictures | after a batch | after drawing | at the end | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for label, held in (("as a stream", False), ("all held", True)):
        for count in (FEW, options.many):
            with context.Pool(1) as pool:
                *peaks, seconds = pool.apply(measure, (count, held))
            cells = " | ".join(f"{peak:.0f} MB" for peak in peaks)
            lines.append(f"| {label} | {count:,} | {cells} | {seconds:.0f} |")
    report(
        "Memory of an evaluation",
        [
            f"Pictures of {SIDE} × {SIDE} from a tiny network, {BATCH} at a time, with scores and "
            "features, then the kernel distance, which holds tiles of up to 2,048 × 2,048 numbers; "
            "peak resident memory of the process. For comparison, pictures that are all drawn "
            "before they are scored.",
            "",
            *lines,
        ],
    )


if __name__ == "__main__":
    main()
