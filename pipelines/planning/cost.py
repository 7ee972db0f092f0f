"""The cost of one node, and the computing power it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.dag.plan import Node
from pipelines.planning.encoder_cost import SECONDS_PER_HOUR
from pipelines.spec.cluster import EMBEDDING, Cluster, Group

CPU = "CPU"
"""Name of the group of nodes that use no GPU: the spec's ``cpus:``."""

CPU_FLOPS = 62e9
"""FLOP/s of one CPU core in float32, measured: 19.0 images/s × 3 × 2.19 GFLOPs on two threads
(tests/benchmarks/RESULTS.md, "Training step against peers")."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a node that must run; all zero if its cost is unknown or negligible."""

    flops: float = 0.0
    """Floating-point operations in all."""

    seconds: float = 0.0
    """Run time."""

    group: str = ""
    """The GPU group of ``cluster.groups`` it runs on, or :data:`CPU`."""

    gang: float = 0.0
    """GPUs (or CPUs) of the group that it holds from start to end; may be fractional."""

    money: float = 0.0
    """GPU-hours × the group's price, in the cluster's currency."""

    kept_bytes: float = 0.0
    """Bytes in the store once it is done."""

    scratch_bytes: float = 0.0
    """Further bytes while it runs: the newest checkpoints."""

    written_bytes: float = 0.0
    """Bytes written in all: ``kept_bytes`` and every checkpoint."""

    how: str = ""
    """How the time was estimated, for people."""

    @property
    def gpu_hours(self) -> float:
        """GPUs held × hours held; 0 on CPUs."""
        return 0.0 if self.group == CPU else self.gang * self.seconds / SECONDS_PER_HOUR


def stage_of(node: Node) -> str:
    """The stage a node belongs to, as a key of ``cluster.stages``."""
    return EMBEDDING if node.kind == "embed" else node.name.partition("/")[0]


def gpus_of(pool: Mapping[str, Any]) -> float:
    """GPUs of an embedding pool: actors × GPUs per actor."""
    return float((pool["actors"] or 1) * pool["gpus"])


def group_of(node: Node, cluster: Cluster) -> tuple[str, Group]:
    """Name and settings of the GPU group a node runs on.

    Raises:
        ValueError: ``cluster.stages`` names no group for its stage.
    """
    name = cluster.group_of(stage_of(node))
    if name is None:
        raise ValueError(
            f"{node.id} needs GPUs, but `cluster.stages` names no group for {stage_of(node)}; "
            f"write `stages: {{{stage_of(node)}: …}}` with one of {', '.join(cluster.groups)}"
        )
    return name, cluster.groups[name]


@dataclass(frozen=True, kw_only=True)
class Power:
    """Computing power a node runs on."""

    group: str
    """The GPU group, or :data:`CPU`."""

    gang: float
    """GPUs (or CPUs) held together."""

    speed: float
    """FLOP/s of the whole gang."""

    how: str
    """The factors of ``speed``, for people."""

    price: float = 0.0
    """Price of one GPU for one hour."""


def power_of(node: Node, cluster: Cluster, precision: str) -> Power:
    """A node's computing power: GPUs × peak × utilisation, or CPUs × :data:`CPU_FLOPS`.

    Args:
        precision: ``float32`` or ``bfloat16``, which selects the GPU's peak.
    """
    if not node.gpus:
        return Power(
            group=CPU,
            gang=node.cpus,
            speed=node.cpus * CPU_FLOPS,
            how=f"{node.cpus} CPUs × {CPU_FLOPS / 1e9:.0f} GFLOP/s",
        )
    name, group = group_of(node, cluster)
    peak = group.peak(precision)
    return Power(
        group=name,
        gang=node.gpus,
        speed=node.gpus * peak * group.utilisation,
        how=f"{node.gpus:g} {group.gpu} × {peak / 1e12:g} TFLOP/s ({precision}) × "
        f"{group.utilisation * 100:g} % (assumed)",
        price=group.price,
    )


def money_for(price: float, gang: float, seconds: float) -> float:
    """Price of a GPU-hour × GPUs × hours."""
    return price * gang * seconds / SECONDS_PER_HOUR
