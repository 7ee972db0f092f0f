"""Cost of every node of a plan on the spec's cluster: FLOPs, time, GPU-hours, bytes and money.

Each figure follows from the spec by the formula in its function's docstring. The inputs are

- FLOPs of a network, from :func:`pipelines.planning.network_size.size_of`, and of the encoders,
  from :mod:`pipelines.planning.encoder_cost`;
- FLOP/s of a GPU: the peak of its data sheet (:data:`pipelines.spec.gpus.GPUS`) times the
  utilisation that the spec assumes, or the speed measured on a finished expert of the stage.

Not counted, because small in comparison: validation, sample images and checkpoints during training,
reading data, Ray's start-up time for nodes that do not train, and all other kinds of node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.dag.plan import Node, Plan, images_to_train
from pipelines.planning.cost import CPU_FLOPS, Cost, gpus_of, group_of, money_for, power_of
from pipelines.planning.evaluation_cost import evaluation, features, gradients
from pipelines.planning.probe_cost import probe
from pipelines.planning.training_cost import measured_speeds, training
from pipelines.spec.cluster import Cluster
from pipelines.spec.pipeline import Spec


def costs_of(plan: Plan, cluster: Cluster, embed_work: Mapping[str, Any]) -> dict[str, Cost]:
    """Cost by node id, for the nodes that must run.

    Args:
        embed_work: the embed nodes' work, from :func:`pipelines.planning.embedding.estimate`.

    Raises:
        ValueError: A node needs GPUs, and the cluster has no group for its stage.
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
            found[node.id] = _embedding(plan.spec, node, cluster, embed_work.get(node.id, {}))
        elif node.kind == "evaluate":
            found[node.id] = evaluation(plan.spec, node, cluster)
        elif node.kind == "features":
            found[node.id] = features(plan.spec, node, cluster)
        elif node.kind == "probe":
            found[node.id] = probe(plan.spec, node, cluster)
        elif node.kind == "gradients":
            found[node.id] = gradients(plan.spec, node, cluster)
        else:
            found[node.id] = Cost()
    return found


def _embedding(spec: Spec, node: Node, cluster: Cluster, work: Mapping[str, Any]) -> Cost:
    """Time = that of the slower encoder stage: FLOPs ÷ (its pool's GPUs × peak × utilisation).

    The stages of the job run at the same time. Without GPUs: all FLOPs ÷ the CPUs' FLOP/s.
    """
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
    factors = []
    for role, needed in flops.items():
        stage = (
            "clip" if role == "clip" else "t5"
        )  # the T5 stage runs all further text encoders too
        pool, precision = pools[stage], precisions.get(role, "float32")
        speed = gpus_of(pool) * group.peak(precision) * spec.embedding.utilisation
        times[stage] += needed / (speed or (pool["actors"] or 1) * CPU_FLOPS)
        factors.append(
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
        how=f"{', '.join(factors)} × {share}" if factors else "",
    )
