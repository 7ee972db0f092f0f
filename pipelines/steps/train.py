"""Trains one expert: hands the node to Ray Train, and takes its outcome."""

from __future__ import annotations

import contextlib
from typing import Any

from pipelines.steps.context import Context, Result
from pipelines.store.artifacts import SCRATCH, signature


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from pipelines.steps import train_worker

    # Checkpoints are ours, in the node's folder; what Ray Train keeps is scratch, under a name
    # that no other attempt has (an old name would make it resume by its own, older, records).
    name = f"{ctx.fingerprint}{signature()}"
    scratch = f"{SCRATCH}/{name}"
    trainer = TorchTrainer(
        train_worker.run,
        train_loop_config={"ctx": ctx, "settings": settings, "inputs": inputs},
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": ctx.cpus}),
        run_config=RunConfig(
            name=name,
            storage_path=ctx.store.full(SCRATCH),
            failure_config=FailureConfig(max_failures=2, controller_failure_limit=2),
        ),
    )
    try:
        outcome = trainer.fit().return_value
    finally:
        with contextlib.suppress(OSError):  # a bucket that is away: what was raised says so
            ctx.store.remove_folder(scratch)
    if "error" in outcome:
        raise ValueError(outcome["error"])
    return Result(**outcome)
