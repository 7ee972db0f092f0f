"""What training nodes cost, by what their network computes or what a finished one did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ediffi_core.tree import ROOT
from pipelines.dag.plan import Node, Plan, growth_budget_left
from pipelines.formatting import number
from pipelines.planning.cost import Cost, money_for, power_of, stage_of
from pipelines.planning.network import Size, size_of
from pipelines.planning.networks import config_of
from pipelines.spec.cluster import Cluster
from pipelines.spec.pipeline import Spec

START_S = 10.7
"""From ready to the first step of a training node, as measured (RESULTS.md)."""

TRAINING_PASSES = 3
"""Forward, and twice that for backward; recomputed activations are not counted, as in
:func:`pipelines.training.meters.flops_per_image`."""

FLOAT32 = 4


def flops_an_image(spec: Spec, node: Node) -> float:
    """Of a training step: 3 × a forward pass at the side that is trained on."""
    return TRAINING_PASSES * size_of(config_of(spec, stage_of(node))).flops


def growth_of(plan: Plan, cluster: Cluster) -> dict[str, Cost]:
    """Stage → what its tree may still cost, of those that grow: one after the other at most what is
    left of the budget."""
    speeds = measured_speeds(plan)
    roots = {stage: plan.verdicts[f"train/{stage}/{ROOT}"].node for stage in plan.trees}
    return {
        stage: training(plan.spec, roots[stage], images, cluster, speeds)
        for stage, images in growth_budget_left(plan).items()
    }


def training(
    spec: Spec, node: Node, images: int, cluster: Cluster, speeds: Mapping[str, Speed]
) -> Cost:
    """Time = start-up + images ÷ images/s; images/s as measured, or
    GPUs × peak × utilisation ÷ FLOPs an image."""
    flops = images * flops_an_image(spec, node)
    power = power_of(node, cluster, node.settings["training"]["precision"])
    stored = stored_by_training(node, size_of(config_of(spec, stage_of(node))), images)
    a_second, how = power.speed / flops_an_image(spec, node), power.how
    if known := speeds.get(speed_key(node)):
        a_second, how = known.images_per_s, f"measured on {known.node}"
    seconds = START_S + images / a_second
    return Cost(
        flops=flops,
        seconds=seconds,
        group=power.group,
        gang=power.gang,
        money=money_for(power.price, power.gang, seconds),
        how=f"{how}: {number(a_second)} images/s",
        **stored,
    )


def stored_by_training(node: Node, size: Size, images: int) -> dict[str, float]:
    """Bytes of float32 weights W: a checkpoint is (raw, EMA, two moments, averages of growing
    length) × W; kept are raw and EMA for inference, the last state, snapshots and milestones."""
    training, cadence = node.settings["training"], node.runtime
    weights = size.parameters * FLOAT32
    lengths = len(training["snapshot_lengths"]) if training["snapshot_images"] else 0
    checkpoint = weights * (4 + lengths)
    snapshots = images // training["snapshot_images"] if training["snapshot_images"] else 0
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
    node: str
    images_per_s: float


def speed_key(node: Node) -> str:
    """Nodes of one key train alike: network, side, batch and precision of a stage.

    By how many workers is not in a manifest: it is taken that they are still as many.
    """
    s = node.settings
    alike = [s["network"], s["resolution"], s["training"]["batch"], s["training"]["precision"]]
    return f"{stage_of(node)} {alike}"


def measured_speeds(plan: Plan) -> dict[str, Speed]:
    """Of finished experts: images that were trained ÷ the seconds of their last attempt, from ready
    to written. Of several the one that trained longest."""
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
