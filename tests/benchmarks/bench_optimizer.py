"""Muon against AdamW on the root of the demo's base: loss by images, and time of a step.

Needs a finished demo (``make demo``), in the store ``EDIFFI_STORE``. Everything but optimiser,
batch and learning rate is the demo's, the schedule's end included: it is each row's own.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness import in_turn, report

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/kits")]

from train_kit import context_of  # noqa: E402

from pipelines.dag import plan, sources  # noqa: E402
from pipelines.spec.loading import load  # noqa: E402
from pipelines.spec.training import FINAL_DRAWS  # noqa: E402
from pipelines.store.artifacts import Store  # noqa: E402
from pipelines.training.build import TrainingSetup  # noqa: E402
from pipelines.training.loop import Trainer  # noqa: E402
from pipelines.training.validation import prepare_batch  # noqa: E402

NODE, ROUNDS, STEPS = "train/base/E0_0", 7, 20
NEVER = 10**9


class Row(NamedTuple):
    """An optimiser as the demo had it, or has it, and images to train on."""

    optimizer: str
    batch: int
    learning_rate: float
    images: int


ADAMW, MUON = ("adamw", 16, 2e-3), ("muon", 32, 4e-3)
ROWS = [Row(*ADAMW, 16_000), Row(*MUON, 16_000), Row(*ADAMW, 48_000)]


def main() -> None:
    torch.set_num_threads(1)
    with demo() as setup:
        losses = [loss(setup(row)) for row in ROWS]
        ways = {row.optimizer: steps(setup(row)) for row in ROWS[:2]}
        seconds = in_turn(ROUNDS, **ways)
    per_image = {row.optimizer: seconds[row.optimizer] / STEPS / row.batch for row in ROWS[:2]}
    lines = [
        "The demo's root alone, one thread; mean validation loss of its averaged weights.",
        "",
        "| optimiser | batch | learning rate | images | val loss |",
        "|---|---|---|---|---|",
        *(
            f"| {r.optimizer} | {r.batch} | {r.learning_rate:g} | {r.images:,} | {value:.4f} |"
            for r, value in zip(ROWS, losses, strict=True)
        ),
        "",
        f"An image takes {per_image['muon'] / per_image['adamw']:.2f} of AdamW's time "
        f"({per_image['muon'] * 1e3:.1f} ms; median of {ROUNDS} rounds in turn of {STEPS} steps).",
    ]
    report("The optimiser: Muon against AdamW", lines)


@contextmanager
def demo() -> Iterator[Callable[[Row], TrainingSetup]]:
    """:func:`setups` of a copy of the demo's store; of the store's own folder nothing changes."""
    found = os.environ.get("EDIFFI_STORE", "ediffi-store")
    if not Path(found).is_dir():
        raise SystemExit(f"there is no store {found}; run `make demo` first")
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        shutil.copytree(found, store, ignore=shutil.ignore_patterns("mlflow*", "train", "evaluate"))
        yield setups(store)


def setups(store: Path) -> Callable[[Row], TrainingSetup]:
    """Row → the training of the demo's root in a new folder of the store, from its beginning."""
    spec = load(ROOT / "pipelines/specs/demo.yaml")
    made = plan.make(spec, Store.open(str(store)), sources.identify_all(spec))
    verdict = made.verdicts[NODE]
    quiet = {"checkpoint_images": NEVER, "validate_images": NEVER}

    def setup(row: Row) -> TrainingSetup:
        where = f"bench/{'-'.join(map(str, row))}"
        runtime = {**verdict.node.runtime, **quiet}
        ctx, settings, inputs = context_of(made, verdict, store, where, runtime=runtime)
        changed = {k: getattr(row, k) for k in ("optimizer", "batch", "learning_rate")}
        settings["training"] = {**settings["training"], **changed}
        return TrainingSetup(ctx, {**settings, "images": row.images}, inputs)

    return setup


def loss(setup: TrainingSetup) -> float:
    """The validation loss after training to the end."""
    Trainer(setup).run_steps()
    with setup.ema_weights() as model:
        return float(setup.validation.losses(model, FINAL_DRAWS)[1].mean())


def steps(setup: TrainingSetup) -> Callable[[], Any]:
    """Some steps on the same images, which are read before."""
    batch = setup.options["batch"]
    index = torch.arange(batch)
    x, cond = prepare_batch(setup.data.batch(index), index, setup.settings, setup.stream)

    def run() -> None:
        for _ in range(STEPS):
            setup.step(index, x, cond, 1e-3)
            setup.state.advance(batch, batch)

    return run


if __name__ == "__main__":
    main()
