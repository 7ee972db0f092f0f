"""Nodes of what is evaluated or measured beside an ensemble: merged experts, and gradients."""

from __future__ import annotations

from ediffi_core import tree
from ediffi_core.noise import EVERYTHING
from pipelines.dag.experts import quantiles, super_resolution
from pipelines.dag.features import worker_settings
from pipelines.dag.node import Node
from pipelines.spec.groups import MERGED
from pipelines.spec.pipeline import Spec


def weights_node(stage: str, model: str) -> str:
    """Id of the node that has the weights of a stage's model: an expert, a baseline, ``merged``."""
    return f"merge/{stage}" if model == MERGED else f"train/{stage}/{model}"


def merge_node(spec: Spec, stage: str) -> Node:
    """The node that merges experts of a stage into one model on all noise levels.

    Raises:
        ValueError: The stage has no ``merge:``.
    """
    weights = spec.stages[stage].merge
    if weights is None:
        raise ValueError(f"stage {stage} has no `merge:`")
    return Node(
        kind="merge",
        name=stage,
        settings={
            "expert": MERGED,
            "interval": quantiles(EVERYTHING),
            "root": tree.ROOT,
            "weights": dict(weights),
        },
        inputs={name: weights_node(stage, name) for name in (tree.ROOT, *weights)},
    )


def gradients_node(spec: Spec, stage_name: str, bins: int) -> Node:
    """The node that compares the gradients of a root's loss between shares of p(σ)."""
    stage, evaluate = spec.stages[stage_name], spec.evaluate
    return Node(
        kind="gradients",
        name=f"{stage_name}/root",
        settings={
            "expert": tree.ROOT,
            "bins": bins,
            "pictures": evaluate.gradient_pictures,
            "resolution": stage.resolution,
            "noise": {"P_mean": stage.P_mean, "P_std": stage.P_std},
            "sigma_data": stage.sigma_data,
            "conditioning": "text",
            "seed": spec.seed,
            **super_resolution(spec, stage_name),
        },
        inputs={
            "root": weights_node(stage_name, tree.ROOT),
            "validation": "embed/validation",
        },
        runtime={"batch": evaluate.batch, **worker_settings(spec), "actors": 1},
        cpus=evaluate.cpus,
        gpus=evaluate.gpus,
        labels=evaluate.labels,
    )
