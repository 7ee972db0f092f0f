"""Attention by groups of rows against attention to all rows at once: the demo's base on a CPU.

Needs a finished demo (``make demo``), in the store ``EDIFFI_STORE``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import in_turn, report

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/kits")]

from bench_optimizer import ROWS, demo, steps  # noqa: E402

from ediffi_core.cascade import CascadeStage, sample  # noqa: E402
from ediffi_core.token_groups import all_rows_at_once  # noqa: E402
from pipelines.training.build import TrainingSetup  # noqa: E402

ROUNDS, PICTURES = 7, 64


def main() -> None:
    torch.set_num_threads(1)
    with demo() as setup_of:
        setup = setup_of(ROWS[1])
        ways = {"training": steps(setup), "drawing": drawing(setup)}
        both = {k: way for what, run in ways.items() for k, way in pair(what, run).items()}
        seconds = in_turn(ROUNDS, **both)
    lines = [
        f"Seconds of attention to all rows at once, by those of groups; medians of {ROUNDS} rounds",
        "in turn, one thread, the demo's base: batches of 32 in training, of 64 with guidance in",
        "drawing.",
        "",
        *(f"- {what}: {seconds[f'{what}_whole'] / seconds[what]:.2f}" for what in ways),
    ]
    report("Attention by groups of rows", lines)


def pair(what: str, run: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    """A way with groups and one without."""

    def whole() -> None:
        with all_rows_at_once():
            run()

    return {what: run, f"{what}_whole": whole}


def drawing(setup: TrainingSetup) -> Callable[[], Any]:
    """Draws pictures for the first captions."""
    _, cond = setup.data.batch(torch.arange(PICTURES))
    side = setup.settings["resolution"]
    stage = CascadeStage(
        name="base", denoiser=setup.model, resolution=side, steps=8, solver="deis3", guidance=0.5
    )
    return lambda: list(sample([stage], cond, seed=0))


if __name__ == "__main__":
    main()
