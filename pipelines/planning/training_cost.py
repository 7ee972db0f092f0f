"""Cost of training nodes: from the FLOPs of their network, or the speed of a finished one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ediffi_core.tree import ROOT
from pipelines.dag.plan import Node, Plan, growth_budget_left
from pipelines.formatting import number
from pipelines.planning.cost import Cost, money_for, power_of, stage_of
from pipelines.planning.network_size import Size, size_of
from pipelines.planning.stage_networks import config_of
from pipelines.spec.cluster import Cluster
from pipelines.spec.pipeline import Spec

START_S = 10.7
"""Seconds from ready to the first step of a training node, measured (RESULTS.md)."""

TRAINING_PASSES = 3
"""One forward pass, and a backward pass that costs two; recomputed activations do not count, as in
:func:`pipelines.training.meters.flops_per_image`."""

FLOAT32_BYTES = 4


def flops_per_image(spec: Spec, node: Node) -> float:
    """FLOPs of a training step per image: 3 × a forward pass at the training resolution."""
    return TRAINING_PASSES * size_of(config_of(spec, stage_of(node))).flops


def growth_of(plan: Plan, cluster: Cluster) -> dict[str, Cost]:
    """Growing stage → the most that experts added later may cost, trained one after another.

    In a plan of several pipelines, all growing stages of a name are one.
    """
    if plan.cells:
        together: dict[str, list[Cost]] = {}
        for cell in plan.cells.values():
            for stage, cost in growth_of(cell, cluster).items():
                together.setdefault(stage, []).append(cost)
        return {f"{stage} in {len(of)} cells": in_turn(of) for stage, of in together.items()}
    speeds = measured_speeds(plan)
    left = growth_budget_left(plan)
    roots = {stage: plan.verdicts[f"train/{stage}/{ROOT}"].node for stage in left}
    return {
        stage: training(plan.spec, roots[stage], images, cluster, speeds)
        for stage, images in left.items()
    }


def in_turn(costs: Sequence[Cost]) -> Cost:
    """The cost of several trainings on the same GPUs, one after another."""
    added = ("flops", "seconds", "money", "kept_bytes", "scratch_bytes", "written_bytes")
    return replace(costs[0], **{name: sum(getattr(c, name) for c in costs) for name in added})


def training(
    spec: Spec, node: Node, images: int, cluster: Cluster, speeds: Mapping[str, Speed]
) -> Cost:
    """Time = start-up + images ÷ images/s, where images/s is measured, or
    GPUs × peak × utilisation ÷ FLOPs per image.

    Args:
        images: images the node trains on.
        speeds: from :func:`measured_speeds`.
    """
    flops = images * flops_per_image(spec, node)
    power = power_of(node, cluster, node.settings["training"]["precision"])
    stored = stored_by_training(node, size_of(config_of(spec, stage_of(node))), images)
    images_per_s, how = power.speed / flops_per_image(spec, node), power.how
    if known := speeds.get(speed_key(node)):
        images_per_s, how = known.images_per_s, f"measured on {known.node}"
    seconds = START_S + images / images_per_s
    return Cost(
        flops=flops,
        seconds=seconds,
        group=power.group,
        gang=power.gang,
        money=money_for(power.price, power.gang, seconds),
        how=f"{how}: {number(images_per_s)} images/s",
        **stored,
    )


def stored_by_training(node: Node, size: Size, images: int) -> dict[str, float]:
    """Bytes that a training node stores, from the size W of its weights in float32.

    A checkpoint takes W each for the raw weights, their EMA, AdamW's two moments or Muon's one, and
    the averages of growing length. Kept are raw and EMA weights for inference, the last checkpoint,
    milestones and snapshots.
    """
    training, cadence = node.settings["training"], node.runtime
    weights = size.parameters * FLOAT32_BYTES
    lengths = len(training["snapshot_lengths"]) if training["snapshot_images"] else 0
    moments = 1 if training.get("optimizer") == "muon" else 2
    checkpoint = weights * (2 + moments + lengths)
    snapshots = math.ceil(images / training["snapshot_images"]) if lengths else 0
    milestone = cadence["milestone_images"]
    milestones = (images - 1) // milestone if milestone else 0
    kept = 2 * weights + checkpoint * (1 + milestones) + snapshots * lengths * weights
    saved = (images - 1) // cadence["checkpoint_images"]
    return {
        "kept_bytes": kept,
        "scratch_bytes": min(saved, cadence["keep"] + 1) * checkpoint,  # one is being written
        "written_bytes": kept + max(0, saved - milestones) * checkpoint,
    }


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Training speed measured on a finished node."""

    node: str
    images_per_s: float


def speed_key(node: Node) -> str:
    """Key of nodes that train at the same speed: of a stage, network and resolution, trained alike.

    The number of workers is not in a manifest; it is assumed not to have changed.
    """
    s = node.settings
    training = s["training"]
    how = [training["batch"], training["precision"], training.get("optimizer", "adamw")]
    same = [s["network"], s["resolution"], *how]
    return f"{stage_of(node)} {json.dumps(same, sort_keys=True)}"


def measured_speeds(plan: Plan) -> dict[str, Speed]:
    """:func:`speed_key` → measured speed: images ÷ seconds of a finished expert's last attempt.

    The seconds run from ready to written. Of several experts, the one with most images counts.
    """
    longest: dict[str, tuple[int, Speed]] = {}
    for verdict in plan.verdicts.values():
        node, manifest = verdict.node, verdict.manifest
        if node.kind != "train" or manifest is None:
            continue
        images, seconds = manifest["info"].get("trained_now", 0), manifest["seconds"]
        if images and seconds and images > longest.get(speed_key(node), (0, None))[0]:
            speed = Speed(node=node.id, images_per_s=images / seconds)
            longest[speed_key(node)] = images, speed
    return {key: speed for key, (_, speed) in longest.items()}
