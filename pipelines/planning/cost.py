"""What a node costs, and what of a cluster it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.dag.plan import Node
from pipelines.planning.encoder_cost import SECONDS_AN_HOUR
from pipelines.spec.cluster import EMBEDDING, Cluster, Group

CPU = "CPU"
"""The group of nodes without a GPU: the spec's ``cpus:``."""

CPU_FLOPS = 62e9
"""FLOP/s of a CPU core in float32: 19.0 images/s × 3 × 2.19 GFLOPs on two threads, as measured
(tests/benchmarks/RESULTS.md, "Training step against peers")."""


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


def stage_of(node: Node) -> str:
    return EMBEDDING if node.kind == "embed" else node.name.partition("/")[0]


def gpus_of(pool: Mapping[str, Any]) -> float:
    return float((pool["actors"] or 1) * pool["gpus"])


def group_of(node: Node, cluster: Cluster) -> tuple[str, Group]:
    name = cluster.group_of(stage_of(node))
    if name is None:
        raise ValueError(
            f"{node.id} asks for GPUs, and `cluster.stages` names no group for {stage_of(node)}; "
            f"write `stages: {{{stage_of(node)}: …}}` with one of {', '.join(cluster.groups)}"
        )
    return name, cluster.groups[name]


@dataclass(frozen=True, kw_only=True)
class Power:
    """What a node computes with."""

    group: str
    gang: float
    speed: float
    """FLOP/s of the gang."""

    how: str
    """What that is made of."""

    price: float = 0.0
    """Of one of the gang for an hour."""


def power_of(node: Node, cluster: Cluster, precision: str) -> Power:
    """GPUs × peak × utilisation; or what its CPUs do, without a GPU."""
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
    return price * gang * seconds / SECONDS_AN_HOUR
