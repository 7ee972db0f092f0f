"""What each node of a plan costs on the spec's cluster: operations, time, GPU-hours, bytes, money.

Every figure is a formula of the spec, worked out where its docstring says so, with

- operations of a network: :func:`pipelines.planning.network.size_of`, of the encoders:
  :mod:`pipelines.data.cost`;
- what a GPU does: its data sheet's peak (:data:`pipelines.data.cost.GPUS`) times the share of it
  that the spec assumes, or what a finished expert of the stage was measured to do.

Left out, as small beside the rest: validation, pictures and checkpoints while training, reading,
what Ray takes to start anything but a training node, and everything of kinds not named here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ediffi_core.tree import ROOT
from pipelines.data.cost import SECONDS_AN_HOUR
from pipelines.plan import Node, Plan, images_to_train
from pipelines.planning.cluster import EMBEDDING, Cluster, Group
from pipelines.planning.network import Size, size_of
from pipelines.planning.networks import config_of
from pipelines.planning.words import number
from pipelines.spec import Spec

CPU = "CPU"
"""The group of nodes without a GPU: the spec's ``cpus:``."""

CPU_FLOPS = 62e9
"""FLOP/s of a CPU core in float32: 19.0 images/s × 3 × 2.19 GFLOPs on two threads, as measured
(tests/benchmarks/RESULTS.md, "Training step against peers")."""

START_S = 10.7
"""From ready to the first step of a training node, as measured (RESULTS.md)."""

TRAINING_PASSES = 3
"""Forward, and twice that for backward; recomputed activations are not counted, as in
:func:`pipelines.training.meters.flops_per_image`."""

FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a node that must run; nothing of it for a node that need not, or of unknown cost."""

    flops: float = 0.0
    seconds: float = 0.0
    group: str = ""
    """Of GPUs, or :data:`CPU`."""

    gang: float = 0.0
    """How many of the group it holds, from start to end."""

    money: float = 0.0
    """GPU-hours × the group's price."""

    kept_bytes: float = 0.0
    """In the store, when it is done."""

    scratch_bytes: float = 0.0
    """Beside that while it runs: its newest checkpoints."""

    written_bytes: float = 0.0
    """In all: what is kept, and every checkpoint."""

    how: str = ""
    """How the time was reckoned."""

    @property
    def gpu_hours(self) -> float:
        """GPUs held × the time they are held."""
        return 0.0 if self.group == CPU else self.gang * self.seconds / SECONDS_AN_HOUR


def costs_of(plan: Plan, cluster: Cluster, ahead: Mapping[str, Any]) -> dict[str, Cost]:
    """Node → its cost, for the nodes that must run.

    Args:
        ahead: of embed nodes, as :func:`pipelines.data.estimate.ahead` reckons.
    """
    speeds = measured_speeds(plan)
    found = {}
    for verdict in plan.verdicts.values():
        node = verdict.node
        if verdict.cached:
            continue
        if node.kind == "train":
            images = images_to_train(plan, node) or 0
            found[node.id] = _train(plan.spec, node, images, cluster, speeds)
        elif node.kind == "embed":
            found[node.id] = _embed(plan.spec, node, cluster, ahead.get(node.id, {}))
        elif node.kind == "evaluate":
            found[node.id] = evaluation(plan.spec, node)
        else:
            found[node.id] = Cost()
    return found


def stage_of(node: Node) -> str:
    return EMBEDDING if node.kind == "embed" else node.name.partition("/")[0]


def gang_of(node: Node) -> float:
    """GPUs that a node holds at once: workers × the GPUs of each; of embedding, of all its pools.

    0 for a node that works on CPUs.
    """
    if node.kind == "train":
        workers = node.runtime["workers"]
        return float(workers["count"] * workers["gpus"])
    if node.kind == "embed":
        pools = node.runtime["embedding"]
        return sum(_gpus(pools[p]) for p in ("decode", "t5", "clip", "write"))
    return 0.0


def _gpus(pool: Mapping[str, Any]) -> float:
    return float((pool["actors"] or 1) * pool["gpus"])


def _group_of(node: Node, cluster: Cluster) -> tuple[str, Group]:
    name = cluster.group_of(stage_of(node))
    if name is None:
        raise ValueError(
            f"{node.id} asks for GPUs, and `cluster.stages` names no group for {stage_of(node)}; "
            f"write `stages: {{{stage_of(node)}: …}}` with one of {', '.join(cluster.groups)}"
        )
    return name, cluster.groups[name]


def _money(group: Group, gang: float, seconds: float) -> float:
    return group.price * gang * seconds / SECONDS_AN_HOUR


# -- training --------------------------------------------------------------------------------------


def flops_an_image(spec: Spec, node: Node) -> float:
    """Of a training step: 3 × a forward pass at the side that is trained on."""
    return TRAINING_PASSES * size_of(config_of(spec, stage_of(node))).flops


def growth_of(plan: Plan, cluster: Cluster) -> dict[str, Cost]:
    """Stage → what its tree may still cost, of those that grow: one after the other at most what is
    left of the budget."""
    found = {}
    for stage, tree in plan.trees.items():
        settings = plan.spec.stages[stage].adaptive
        if settings and not tree.is_grown:
            root = plan.verdicts[f"train/{stage}/{ROOT}"].node
            left = settings.budget - tree.spent
            found[stage] = _train(plan.spec, root, left, cluster, measured_speeds(plan))
    return found


def _train(
    spec: Spec, node: Node, images: int, cluster: Cluster, speeds: Mapping[str, Speed]
) -> Cost:
    """Time = start-up + images ÷ images/s; images/s as measured, or
    GPUs × peak × utilisation ÷ FLOPs an image."""
    flops = images * flops_an_image(spec, node)
    gang, precision = gang_of(node), node.settings["training"]["precision"]
    stored = stored_by_training(node, size_of(config_of(spec, stage_of(node))), images)
    if not gang:
        speed, how = node.cpus * CPU_FLOPS, f"{node.cpus} CPUs × {CPU_FLOPS / 1e9:.0f} GFLOP/s"
        group = None
        where = CPU
    else:
        where, group = _group_of(node, cluster)
        speed = gang * group.peak(precision) * group.utilisation
        how = (
            f"{gang:g} {group.gpu} × {group.peak(precision) / 1e12:g} TFLOP/s ({precision}) × "
            f"{group.utilisation * 100:g} % (assumed)"
        )
    a_second = speed / flops_an_image(spec, node)
    if known := speeds.get(speed_key(node)):
        a_second, how = known.images_per_s, f"measured on {known.node}"
    seconds = START_S + images / a_second
    return Cost(
        flops=flops,
        seconds=seconds,
        group=where,
        gang=gang or node.cpus,
        money=_money(group, gang, seconds) if group else 0.0,
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


# -- embedding and evaluation ----------------------------------------------------------------------


def _embed(spec: Spec, node: Node, cluster: Cluster, work: Mapping[str, Any]) -> Cost:
    """Time = that of the slower encoder: its FLOPs ÷ (its pool's GPUs × peak × utilisation); the
    stages of the job work at the same time. Without a GPU, all FLOPs ÷ what the CPUs do."""
    flops = {role: n for role, n in work.get("flops", {}).items() if n is not None}
    stored = work.get("bytes") or 0
    gang, pools = gang_of(node), node.runtime["embedding"]
    if not gang:
        return Cost(
            flops=sum(flops.values()),
            seconds=sum(flops.values()) / (node.cpus * CPU_FLOPS),
            group=CPU,
            gang=node.cpus,
            kept_bytes=stored,
            written_bytes=stored,
            how=f"{node.cpus} CPUs × {CPU_FLOPS / 1e9:.0f} GFLOP/s" if flops else "",
        )
    name, group = _group_of(node, cluster)
    precisions = {"t5": work.get("t5_dtype") or "float32", "clip": "float32"}
    times = {}
    for role, needed in flops.items():
        speed = _gpus(pools[role]) * group.peak(precisions[role]) * spec.embedding.utilisation
        times[role] = needed / (speed or (pools[role]["actors"] or 1) * CPU_FLOPS)
    seconds = max(times.values(), default=0.0)
    share = f"{spec.embedding.utilisation * 100:g} % (assumed)"
    told = [
        f"{role} {_gpus(pools[role]):g} {group.gpu} × {group.peak(precisions[role]) / 1e12:g} "
        f"TFLOP/s ({precisions[role]})"
        for role in flops
    ]
    return Cost(
        flops=sum(flops.values()),
        seconds=seconds,
        group=name,
        gang=gang,
        money=_money(group, gang, seconds),
        kept_bytes=stored,
        written_bytes=stored,
        how=f"{', '.join(told)} × {share}" if told else "",
    )


def evaluation(spec: Spec, node: Node) -> Cost:
    """Pictures × each stage's evaluations × a forward pass at the whole side, twice with guidance;
    and the validation loss at the trained side. Evaluation works on CPUs."""
    from pipelines.steps.evaluate import LOSS_DRAWS, UNTRAINED_CAPTIONS

    s = node.settings
    pictures = s["captions"]
    if s["scorer"] and s["controls"]:
        pictures += min(UNTRAINED_CAPTIONS, s["captions"])
    flops = LOSS_DRAWS * size_of(config_of(spec, s["stages"][-1]["name"])).flops
    for stage in s["stages"]:
        sampling = stage["sampling"]
        calls = 2 * sampling["steps"] - 1 if sampling["solver"] == "heun" else sampling["steps"]
        one = size_of(config_of(spec, stage["name"]), stage["resolution"]).flops
        flops += pictures * calls * one * (2 if sampling["guidance"] else 1)
    return Cost(
        flops=flops,
        seconds=flops / (node.cpus * CPU_FLOPS),
        group=CPU,
        gang=node.cpus,
        how=f"{node.cpus} CPUs × {CPU_FLOPS / 1e9:.0f} GFLOP/s",
    )
