"""What each node of a plan costs on the spec's cluster: operations, time, GPU-hours, bytes, money.

Every figure is a formula of the spec, worked out where its docstring says so, with

- operations of a network: :func:`pipelines.planning.network.size_of`, of the encoders:
  :mod:`pipelines.planning.encoder_cost`;
- what a GPU does: its data sheet's peak (:data:`pipelines.spec.gpus.GPUS`) times the share of it
  that the spec assumes, or what a finished expert of the stage was measured to do.

Left out, as small beside the rest: validation, pictures and checkpoints while training, reading,
what Ray takes to start anything but a training node, and everything of kinds not named here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.dag.plan import Node, Plan, images_to_train
from pipelines.planning.cost import CPU_FLOPS, Cost, gpus_of, group_of, money_for, power_of
from pipelines.planning.network import size_of
from pipelines.planning.networks import config_of
from pipelines.planning.training_cost import measured_speeds, training
from pipelines.spec.cluster import Cluster
from pipelines.spec.evaluation import UNTRAINED_CAPTIONS
from pipelines.spec.pipeline import Spec


def costs_of(plan: Plan, cluster: Cluster, ahead: Mapping[str, Any]) -> dict[str, Cost]:
    """Node → its cost, for the nodes that must run.

    Args:
        ahead: of embed nodes, as :func:`pipelines.planning.embedding.ahead` reckons.
    """
    speeds = measured_speeds(plan)
    found = {}
    for verdict in plan.verdicts.values():
        node = verdict.node
        if verdict.cached:
            continue
        if node.kind == "train":
            images = images_to_train(plan, node) or 0
            found[node.id] = training(plan.spec, node, images, cluster, speeds)
        elif node.kind == "embed":
            found[node.id] = _embed(plan.spec, node, cluster, ahead.get(node.id, {}))
        elif node.kind == "evaluate":
            found[node.id] = evaluation(plan.spec, node, cluster)
        else:
            found[node.id] = Cost()
    return found


def _embed(spec: Spec, node: Node, cluster: Cluster, work: Mapping[str, Any]) -> Cost:
    """Time = that of the slower encoder: its FLOPs ÷ (its pool's GPUs × peak × utilisation); the
    stages of the job work at the same time. Without a GPU, all FLOPs ÷ what the CPUs do."""
    flops = {role: n for role, n in work.get("flops", {}).items() if n is not None}
    stored = work.get("bytes") or 0
    gang, pools = node.gpus, node.runtime["embedding"]
    if not gang:
        power = power_of(node, cluster, "float32")
        return Cost(
            flops=sum(flops.values()),
            seconds=sum(flops.values()) / power.speed,
            group=power.group,
            gang=power.gang,
            kept_bytes=stored,
            written_bytes=stored,
            how=power.how if flops else "",
        )
    name, group = group_of(node, cluster)
    precisions = {"t5": work.get("t5_dtype") or "float32"}
    times = dict.fromkeys(("t5", "clip"), 0.0)
    told = []
    for role, needed in flops.items():
        stage = "clip" if role == "clip" else "t5"  # which encodes all other texts too
        pool, precision = pools[stage], precisions.get(role, "float32")
        speed = gpus_of(pool) * group.peak(precision) * spec.embedding.utilisation
        times[stage] += needed / (speed or (pool["actors"] or 1) * CPU_FLOPS)
        told.append(
            f"{role} {gpus_of(pool):g} {group.gpu} × {group.peak(precision) / 1e12:g} "
            f"TFLOP/s ({precision})"
        )
    seconds = max(times.values())
    share = f"{spec.embedding.utilisation * 100:g} % (assumed)"
    return Cost(
        flops=sum(flops.values()),
        seconds=seconds,
        group=name,
        gang=gang,
        money=money_for(group.price, gang, seconds),
        kept_bytes=stored,
        written_bytes=stored,
        how=f"{', '.join(told)} × {share}" if told else "",
    )


def evaluation(spec: Spec, node: Node, cluster: Cluster) -> Cost:
    """Pictures × each stage's evaluations × a forward pass at the whole side, twice with guidance;
    and the validation loss at the trained side."""
    s = node.settings
    pictures = s["captions"]
    if s["metrics"] and s["controls"]:
        pictures += min(UNTRAINED_CAPTIONS, s["captions"])
    losses = s["losses"]
    draws = losses["draws"] * len(losses["experts"])
    flops = draws * size_of(config_of(spec, s["stages"][-1]["name"])).flops
    for stage in s["stages"]:
        sampling = stage["sampling"]
        calls = 2 * sampling["steps"] - 1 if sampling["solver"] == "heun" else sampling["steps"]
        one = size_of(config_of(spec, stage["name"]), stage["resolution"]).flops
        flops += pictures * calls * one * (2 if sampling["guidance"] else 1)
    power = power_of(node, cluster, "float32")
    seconds = flops / power.speed
    return Cost(
        flops=flops,
        seconds=seconds,
        group=power.group,
        gang=power.gang,
        money=money_for(power.price, power.gang, seconds),
        how=power.how,
    )
