"""Run a node's step: in the driver, or as a Ray task on a machine that has what it needs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pipelines.dag.node import Node
from pipelines.executor.ray_cluster import lacking
from pipelines.runs import meters
from pipelines.runs.context import Context, Result

ORCHESTRATING = {"train", "embed", "adopt", "compare", "gate", "drift_gate"}
"""Kinds whose steps run in the driver: they start Ray work themselves, or need no CPU."""


def run_step(node: Node, ctx: Context, inputs: Mapping[str, str]) -> Result:
    """Run a node's step and wait for its result.

    Args:
        inputs: role → folder of the input in the store.

    Raises:
        ValueError: The step found a mistake of the user's, or this machine lacks what it needs.
    """
    import ray

    check_machines(node, ctx)
    if node.kind in ORCHESTRATING:
        return call_step(node.kind, ctx, dict(node.settings), dict(inputs))
    alone = actors_of(node) == 1  # else its actors hold what the node needs
    task = ray.remote(
        num_cpus=node.cpus if alone else 0,
        num_gpus=node.gpus if alone and node.gpus else None,
        label_selector=dict(node.labels) or None,
        max_retries=2,
    )(metered_step)
    try:
        result: Result = ray.get(task.remote(node.kind, ctx, dict(node.settings), dict(inputs)))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    return result


def actors_of(node: Node) -> int:
    """Number of Ray actors that share a node's CPUs and GPUs evenly; 1 if its task has them."""
    return int(node.runtime.get("actors", 1))


def check_machines(node: Node, ctx: Context) -> None:
    """Report that a node has to wait for a machine.

    Raises:
        ValueError: No other machine can join, as Ray runs on this one only.
    """
    # An orchestrating step's GPUs may be spread over several machines.
    of = 0 if node.kind in ORCHESTRATING else 1 / actors_of(node)
    if lacks := lacking(node.gpus * of, node.labels, cpus=round(node.cpus * of)):
        if not os.environ.get("RAY_ADDRESS"):
            raise ValueError(
                f"needs a machine with {lacks}, which this one lacks; set RAY_ADDRESS to a cluster "
                "that has one"
            )
        ctx.report(message=f"is waiting for a machine with {lacks}")


def call_step(kind: str, ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    """Call the step of a kind, in this process."""
    result: Result = import_module(f"pipelines.steps.{kind}").step(ctx, settings, inputs)
    return result


def metered_step(
    kind: str, ctx: Context, settings: dict[str, Any], inputs: dict[str, str]
) -> Result:
    """Call the step of a kind in a process of its own, and report the process's usage."""
    with meters.metered(ctx):
        return call_step(kind, ctx, settings, inputs)
