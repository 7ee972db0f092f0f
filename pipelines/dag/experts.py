"""Nodes that train the experts of a spec's trees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ediffi_core import tree
from ediffi_core.noise import EVERYTHING, Interval
from pipelines.dag.inputs import Encoders
from pipelines.dag.node import Node
from pipelines.spec.pipeline import Expert, Spec, Stage

SINGLE = "single"


def interval_of(stage: Stage, expert: str) -> Interval:
    """The slice an expert is trained on; the complement's follows from the ensemble."""
    if expert == tree.COMPLEMENT:
        return tree.intervals_of(stage.ensemble)[expert]
    return EVERYTHING if expert == SINGLE else tree.interval(expert)


def expert_nodes(spec: Spec, sources: Mapping[str, Any]) -> Iterator[Node]:
    for name, stage in spec.stages.items():
        trained = {**stage.experts, **({SINGLE: stage.single} if stage.single else {})}
        for expert in sorted(trained, key=depth):
            yield train_node(spec, sources, name, expert, trained[expert])


def first(spec: Spec) -> Stage:
    return next(iter(spec.stages.values()))


def depth(expert: str) -> tuple[int, bool, str]:
    """Parents before children; the deeper chain first, the comparison last."""
    if expert in (tree.COMPLEMENT, SINGLE):
        return (1, True, expert)
    level, index = tree.level_and_index(expert)
    return (level, False, f"{-index:09d}")


def bounds(interval: Interval) -> list[float]:
    return [interval.q_lo, interval.q_hi]


def train_node(
    spec: Spec,
    sources: Mapping[str, Any],
    stage_name: str,
    name: str,
    expert: Expert,
    interval: list[float] | None = None,
) -> Node:
    """
    Args:
        interval: the spec's tree has other experts; else it says which it is.
    """
    stage = spec.stages[stage_name]
    single = name == SINGLE
    above = tree.ROOT if single else tree.parent(name)
    stream = tree.ROOT if single else name
    settings: dict[str, Any] = {
        "expert": name,
        "interval": interval or bounds(interval_of(stage, name)),
        "images": expert.images,
        "resolution": stage.resolution,
        "network": spec.network_of(stage_name),
        "training": expert.over(stage.training).settings(),
        "noise": {"P_mean": stage.P_mean, "P_std": stage.P_std},
        "sigma_data": stage.sigma_data,
        "start": "fresh" if above is None else "continue" if single else expert.start,
        "optimizer": expert.optimizer,
        "stream": f"{stage_name}/{stream}",
        "seed": spec.seed,
    }
    settings |= super_resolution(spec, stage_name)
    inputs = {"data": "embed/train"}
    if above:
        inputs["parent"] = f"train/{stage_name}/{above}"
    return Node(
        kind="train",
        name=f"{stage_name}/{name}",
        settings=settings,
        inputs=inputs,
        observes={"validation": "embed/validation"},
        runtime={
            **stage.cadence.model_dump(),
            "workers": stage.workers.model_dump(),
            "limit_hours": stage.limit_hours,
            "encoders": Encoders.of(spec, sources).named,
        },
        cpus=stage.workers.count * expert.cpus,
        gpus=stage.workers.count * stage.workers.gpus,
        labels=stage.workers.labels,
        priority=stage.priority,
    )


def super_resolution(spec: Spec, stage_name: str) -> dict[str, Any]:
    """What a stage that enlarges the pictures of the one below needs to know."""
    names, stage = list(spec.stages), spec.stages[stage_name]
    if stage is first(spec):
        return {}
    below = spec.stages[names[names.index(stage_name) - 1]]
    how = {
        "factor": stage.resolution // below.resolution,
        "crop": stage.crop,
        "degrade": stage.degrade.model_dump(),
    }
    return {"super_resolution": how}
