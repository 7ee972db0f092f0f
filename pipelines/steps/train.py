"""Trains one expert: hands the node to Ray Train, and takes its outcome."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from pipelines.runs.context import Context, Result
from pipelines.store.artifacts import SCRATCH, temp_suffix
from pipelines.training import retries

Outcome = dict[str, Any]


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    from pipelines.training import worker

    config = {"ctx": ctx, "settings": settings, "inputs": inputs}
    return Result(**train(ctx, worker.run, config))


def train(
    ctx: Context, worker: Callable[[dict[str, Any]], Outcome], config: dict[str, Any]
) -> Outcome:
    """Runs it in the node's workers, and again after failures that pass; → what rank 0 returned."""
    return retries.until_done(lambda: run_once(ctx, worker, config), ctx)


def run_once(
    ctx: Context, worker: Callable[[dict[str, Any]], Outcome], config: dict[str, Any]
) -> Outcome:
    """Runs it once, on processes of its own."""
    from ray.train import FailureConfig, RunConfig

    from pipelines.training.backend import ProcessGroup
    from pipelines.training.trainer import RayTrainer

    # Checkpoints are ours, in the node's folder; what Ray Train keeps is scratch, under a name
    # that no other attempt has (an old name would make it resume by its own, older, records).
    name = f"{ctx.fingerprint}{temp_suffix()}"
    timeout_s = ctx.runtime["workers"]["timeout_s"]
    trainer = RayTrainer(
        worker,
        train_loop_config=config,
        backend_config=ProcessGroup(timeout_s=timeout_s, board=ctx.board, node=ctx.node),
        scaling_config=scaling(ctx),
        run_config=RunConfig(
            name=name,
            storage_path=ctx.store.full(SCRATCH),
            # Ray Train tries nothing again: it knows no kinds of failure, and would not say so.
            failure_config=FailureConfig(
                max_failures=0, max_preemption_failures=0, controller_failure_limit=0
            ),
        ),
    )
    try:
        outcome: Outcome = trainer.fit().return_value
    finally:
        with contextlib.suppress(OSError):  # a bucket that is away: what was raised says so
            ctx.store.remove_folder(f"{SCRATCH}/{name}")
    return outcome


def scaling(ctx: Context) -> Any:
    """The node's workers, which share the CPUs that the plan counts for it."""
    from ray.train import ScalingConfig

    workers, gpus, labels = (ctx.runtime["workers"][k] for k in ("count", "gpus", "labels"))
    cpus = ctx.cpus // workers or ctx.cpus / workers  # of more than one Ray gives no parts
    return ScalingConfig(
        num_workers=workers,
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": cpus} | ({"GPU": gpus} if gpus else {}),
        label_selector=labels or None,
    )
