"""A plan's costs and its schedule on the spec's cluster, put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.dag.plan import Plan, path_lengths
from pipelines.planning.cost import CPU, Cost, stage_of
from pipelines.planning.costs import costs_of
from pipelines.planning.network import size_of
from pipelines.planning.networks import config_of
from pipelines.planning.simulate import Schedule, Task, simulate
from pipelines.planning.training_cost import TRAINING_PASSES, growth_of
from pipelines.spec.cluster import Cluster


@dataclass(frozen=True, kw_only=True)
class Outlook:
    cluster: Cluster
    costs: Mapping[str, Cost]
    """Of the nodes that must run."""

    schedule: Schedule
    growth: Mapping[str, Cost]
    """Stage → what its tree may still cost, which is in no other figure."""

    @property
    def groups(self) -> list[str]:
        """Those that a node works on, the GPUs' as the spec has them, and the CPUs last."""
        used = {c.group for c in self.costs.values()}
        return [g for g in (*self.cluster.groups, CPU) if g in used]

    def total(self, what: str) -> float:
        """The sum of one of the costs' figures."""
        return float(sum(getattr(c, what) for c in self.costs.values()))


def look_ahead(plan: Plan, ahead: Mapping[str, Any]) -> Outlook | None:
    """None without a `cluster:` to reckon with; ValueError if something could never run on it.

    Args:
        ahead: of embed nodes, as :func:`pipelines.planning.embedding.ahead` reckons.
    """
    cluster = plan.spec.cluster
    if cluster is None:
        return None
    costs = costs_of(plan, cluster, ahead)
    lengths = path_lengths(plan)
    tasks = [
        Task(
            name=name,
            seconds=cost.seconds,
            needs=plan.verdicts[name].node.dependencies,
            group=cost.group,
            gang=cost.gang,
            priority=plan.verdicts[name].node.priority,
            way=lengths[name],
        )
        for name, cost in costs.items()
    ]
    capacity = {name: float(group.count) for name, group in cluster.groups.items()}
    schedule = simulate(tasks, {**capacity, CPU: float(plan.spec.cpus)})
    growth = growth_of(plan, cluster)
    return Outlook(cluster=cluster, costs=costs, schedule=schedule, growth=growth)


def reckoned(plan: Plan, outlook: Outlook) -> list[list[str]]:
    """A row for every stage, embedding and evaluation: what its figures were worked out from."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, cost in outlook.costs.items():
        node = plan.verdicts[name].node
        if not cost.how:
            continue
        what = stage_of(node) if node.kind in ("train", "embed") else node.kind
        told = ""
        if node.kind == "train":
            size = size_of(config_of(plan.spec, what))
            gflops = TRAINING_PASSES * size.flops / 1e9
            told = f"{size.parameters:,} parameters, {gflops:,.4g} GFLOPs an image; "
        found.setdefault((what, cost.how), [what, told + cost.how])
    return list(found.values())


def as_data(outlook: Outlook) -> dict[str, Any]:
    """For programs; seconds, bytes, FLOPs, and the cluster's currency."""
    schedule = outlook.schedule
    return {
        "makespan_s": schedule.makespan,
        "bounds_s": schedule.bounds,
        "above_bound": schedule.above,
        "critical_path": list(schedule.critical),
        "idle": {g: schedule.idle(g) for g in outlook.groups},
        "gpu_hours": outlook.total("gpu_hours"),
        "money": outlook.total("money"),
        "currency": outlook.cluster.currency,
        "kept_bytes": outlook.total("kept_bytes"),
        "written_bytes": outlook.total("written_bytes"),
        "growth": {s: {**c.__dict__, "gpu_hours": c.gpu_hours} for s, c in outlook.growth.items()},
    }


def cost_as_data(outlook: Outlook, node: str) -> dict[str, Any] | None:
    """Of a node that must run: its cost, and when it starts."""
    cost = outlook.costs.get(node)
    if cost is None:
        return None
    start = {"start_s": outlook.schedule.starts[node]}
    return {**cost.__dict__, "gpu_hours": cost.gpu_hours, **start}
