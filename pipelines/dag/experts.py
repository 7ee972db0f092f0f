"""Nodes that train the experts of a spec's trees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from itertools import pairwise
from typing import Any

from ediffi_core import tree
from ediffi_core.noise import EVERYTHING, Interval, Mixture
from pipelines.dag.inputs import Encoders
from pipelines.dag.node import Node
from pipelines.spec.pipeline import Spec
from pipelines.spec.stage import Baseline, Expert, Stage

SINGLE = "single"
"""Name of the single model that gets the budget of a whole tree, for comparison."""


DIFFICULTY_DRAWS = 4096
"""Validation draws over p(σ) that a root's loss is measured on, to place boundaries."""

DIFFICULTY_SHARES = 32
"""Equal shares of p(σ) that the loss is measured in, and equal shares of the loss that its
boundaries are computed for."""


def interval_of(stage: Stage, expert: str) -> Interval:
    """The noise interval an expert is trained on; the complement's depends on the ensemble.

    ``single`` and baselines are trained on all noise levels.
    """
    if expert == tree.COMPLEMENT:
        return tree.intervals_of(stage.ensemble, stage.warp)[expert]
    if expert == tree.ROOT or not tree.is_expert(expert):
        return EVERYTHING
    return tree.interval(expert, stage.warp)


def expert_nodes(spec: Spec, sources: Mapping[str, Any]) -> Iterator[Node]:
    """Train nodes of all stages' experts, each after its parent, and what places their intervals.

    Experts whose intervals are not known yet are left out.
    """
    for name, stage in spec.stages.items():
        trained = {**stage.experts, **stage.continued}
        for expert in sorted(trained, key=_training_order):
            if stage.is_placed or expert in (tree.ROOT, SINGLE):
                yield train_node(spec, sources, name, expert, trained[expert])
            if expert == tree.ROOT and stage.boundaries == "difficulty":
                yield difficulty_node(spec, name)


def difficulty_node(spec: Spec, stage_name: str) -> Node:
    """The node that measures where a root's loss is, and so the boundaries of equal difficulty."""
    evaluate = spec.evaluate
    return Node(
        kind="difficulty",
        name=stage_name,
        settings={
            "draws": DIFFICULTY_DRAWS,
            "shares": DIFFICULTY_SHARES,
            "resolution": spec.stages[stage_name].resolution,
            "seed": spec.seed,
            **super_resolution(spec, stage_name),
        },
        inputs={"root": f"train/{stage_name}/{tree.ROOT}", "validation": "embed/validation"},
        runtime={"gpus": evaluate.gpus},
        cpus=evaluate.cpus,
        gpus=evaluate.gpus,
        labels=evaluate.labels,
        priority=spec.stages[stage_name].priority + 1,  # all other experts wait for it
    )


def _training_order(expert: str) -> tuple[int, bool, str]:
    """Sort key: parents before children, the high-noise side first; last the complement, single
    and the baselines."""
    if expert == tree.COMPLEMENT or not tree.is_expert(expert):
        return (1, True, expert)
    level, index = tree.level_and_index(expert)
    return (level, False, f"{-index:09d}")


def quantiles(interval: Interval) -> list[float]:
    """The interval as node settings hold it: ``[q_lo, q_hi]``, quantiles of p(σ)."""
    return [interval.q_lo, interval.q_hi]


def train_node(
    spec: Spec,
    sources: Mapping[str, Any],
    stage_name: str,
    name: str,
    expert: Expert,
    interval: list[float] | None = None,
) -> Node:
    """The node that trains one expert.

    Args:
        name: of the expert: ``E1_1``, ``M_C``, ``single`` or a baseline's.
        expert: its settings.
        interval: ``[q_lo, q_hi]`` to train on; None for the interval of that name in the spec's
            tree.
    """
    stage = spec.stages[stage_name]
    continues = not tree.is_expert(name)
    parent = tree.ROOT if continues else tree.parent(name)
    stream = tree.ROOT if continues else name
    settings: dict[str, Any] = {
        "expert": name,
        "interval": interval or quantiles(interval_of(stage, name)),
        "images": expert.images,
        "resolution": stage.resolution,
        "network": spec.network_of(stage_name),
        "training": expert.over(stage.training).settings(),
        "noise": {"P_mean": stage.P_mean, "P_std": stage.P_std},
        "sigma_data": stage.sigma_data,
        "start": "fresh" if parent is None else "continue" if continues else expert.start,
        "optimizer": expert.optimizer,
        "stream": f"{stage_name}/{stream}",
        "seed": spec.seed,
    }
    if isinstance(expert, Baseline) and expert.density == "experts":
        density = combined_density(stage)
    else:
        density = _density_rows(Interval(*settings["interval"]), expert.overlap)
    if density != [[*settings["interval"], 1.0]]:
        settings["density"] = density
    settings |= super_resolution(spec, stage_name)
    inputs = {"data": "embed/train"}
    if parent:
        inputs["parent"] = f"train/{stage_name}/{parent}"
    return Node(
        kind="train",
        name=f"{stage_name}/{name}",
        settings=settings,
        inputs=inputs,
        unhashed_inputs={"validation": "embed/validation"},
        runtime={
            **stage.cadence.settings(),
            "workers": stage.workers.settings(),
            "limit_hours": stage.max_hours,
            "encoders": Encoders.of(spec, sources).named,
        },
        cpus=stage.workers.count * expert.cpus,
        gpus=stage.workers.count * stage.workers.gpus,
        labels=stage.workers.labels,
        priority=stage.priority,
    )


def _density_rows(own: Interval, overlap: float) -> list[list[float]]:
    """``[q_lo, q_hi, weight]`` of what an expert trains on."""
    return Mixture.around(own, overlap).rows if overlap else [[own.q_lo, own.q_hi, 1.0]]


def combined_density(stage: Stage) -> list[list[float]]:
    """The density of σ that all experts below the root have together, each counted by its images.

    Returns:
        ``[q_lo, q_hi, weight]`` of each piece with constant density relative to p(σ), lowest noise
        first; pieces without weight are left out, and the weights sum to 1.
    """
    images = {name: e.images for name, e in stage.experts.items() if name != tree.ROOT}
    intervals = {name: interval_of(stage, name) for name in images}
    total = sum(images.values())
    rows = [
        (Interval(low, high), Fraction(images[name], total) * Fraction(weight) / _width(low, high))
        for name, own in intervals.items()
        for low, high, weight in _density_rows(own, stage.experts[name].overlap)
    ]
    edges = sorted({q for i, _ in rows for q in (i.q_lo, i.q_hi)})
    pieces: list[list[float]] = []
    relative: list[Fraction] = []  # exact, so that equal densities are seen as equal
    for low, high in pairwise(edges):
        held = (part for i, part in rows if i.holds(Interval(low, high)))
        density = sum(held, Fraction(0))
        if not density:
            continue
        if relative and relative[-1] == density and pieces[-1][1] == low:
            pieces[-1][1] = high
        else:
            pieces.append([low, high, 0.0])
            relative.append(density)
    for piece, density in zip(pieces, relative, strict=True):
        piece[2] = float(density * _width(piece[0], piece[1]))
    return pieces


def _width(low: float, high: float) -> Fraction:
    return Fraction(high) - Fraction(low)


def super_resolution(spec: Spec, stage_name: str) -> dict[str, Any]:
    """Settings of a stage that enlarges the images of the stage below; empty for the base."""
    names, stage = list(spec.stages), spec.stages[stage_name]
    if stage_name == names[0]:
        return {}
    below = spec.stages[names[names.index(stage_name) - 1]]
    how = {
        "factor": stage.resolution // below.resolution,
        "crop": stage.crop,
        "degrade": stage.degrade.settings(),
    }
    return {"super_resolution": how}
