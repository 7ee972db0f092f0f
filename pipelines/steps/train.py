"""Train one expert with Ray Train."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from pipelines.runs.context import Context, Result
from pipelines.store.artifacts import SCRATCH
from pipelines.store.scratch import temp_suffix
from pipelines.training import retries, warm

Outcome = dict[str, Any]


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    """Train the expert of this node."""
    from pipelines.training import worker

    config = {"ctx": ctx, "settings": settings, "inputs": inputs}
    return Result(**train(ctx, worker.run, config))


def train(
    ctx: Context, worker: Callable[[dict[str, Any]], Outcome], config: dict[str, Any]
) -> Outcome:
    """Train on the node's workers, with retries after transient failures; returns rank 0's
    outcome."""
    return retries.run_with_retries(lambda: run_once(ctx, worker, config), ctx)


def run_once(
    ctx: Context, worker: Callable[[dict[str, Any]], Outcome], config: dict[str, Any]
) -> Outcome:
    """Train once, from the newest checkpoint; returns rank 0's outcome.

    With ``workers.keep_warm`` the worker is one that has trained before, if there is an idle one.
    """
    shape = warm.Shape.of(ctx)
    if shape is None:
        outcome: Outcome = fit(ctx, worker, config)
        return outcome

    def start() -> warm.Worker:
        return warm.Worker(shape, lambda serve, mailbox: fit(ctx, serve, mailbox))

    return warm.POOL.do(shape, start, worker, config)


def fit(ctx: Context, worker: Callable[[dict[str, Any]], Any], config: dict[str, Any]) -> Any:
    """Call the function on new worker processes; returns what it returned in rank 0."""
    from ray.train import FailureConfig, RunConfig

    from pipelines.training.backend import ProcessGroupConfig
    from pipelines.training.trainer import RayTrainer

    # Our checkpoints are in the node's folder; Ray Train's own files are temporary. Each attempt
    # gets a new name: with an old one, Ray Train would resume from its own, older records.
    name = f"{ctx.fingerprint}{temp_suffix()}"
    timeout_s = ctx.runtime["workers"]["timeout_s"]
    trainer = RayTrainer(
        worker,
        train_loop_config=config,
        backend_config=ProcessGroupConfig(timeout_s=timeout_s, board=ctx.board, node=ctx.node),
        scaling_config=scaling(ctx),
        run_config=RunConfig(
            name=name,
            storage_path=ctx.store.full(SCRATCH),
            # Ray Train must not retry: it cannot tell failures apart, and would not report them.
            failure_config=FailureConfig(
                max_failures=0, max_preemption_failures=0, controller_failure_limit=0
            ),
        ),
    )
    try:
        return trainer.fit().return_value
    finally:
        with contextlib.suppress(OSError):  # an unavailable bucket: fit() has raised already
            ctx.store.remove_folder(f"{SCRATCH}/{name}")


def scaling(ctx: Context) -> Any:
    """Ray Train's scaling configuration: the workers share the CPUs that the plan gives the
    node, or ask for as many as :attr:`pipelines.training.warm.Shape.ray_cpus` says."""
    from ray.train import ScalingConfig

    workers, gpus, labels = (ctx.runtime["workers"][k] for k in ("count", "gpus", "labels"))
    shape = warm.Shape.of(ctx)
    # Ray allows fractions only below 1.
    cpus = shape.ray_cpus if shape else ctx.cpus // workers or ctx.cpus / workers
    return ScalingConfig(
        num_workers=workers,
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": cpus} | ({"GPU": gpus} if gpus else {}),
        label_selector=labels or None,
    )
