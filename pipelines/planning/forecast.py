"""What a plan will cost and how long it will take on the spec's cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.dag.plan import Plan, path_lengths
from pipelines.planning.cost import CPU, Cost, stage_of
from pipelines.planning.network_size import size_of
from pipelines.planning.node_costs import costs_of
from pipelines.planning.simulate import Schedule, Task, simulate
from pipelines.planning.stage_networks import config_of
from pipelines.planning.training_cost import TRAINING_PASSES, growth_of
from pipelines.spec.cluster import Cluster


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Costs and schedule of the nodes that must run."""

    cluster: Cluster
    """The spec's ``cluster:``."""

    costs: Mapping[str, Cost]
    """Node id → its cost."""

    schedule: Schedule
    """When each node would start."""

    growth: Mapping[str, Cost]
    """Adaptive stage → the most that further growth may cost; contained in no other figure."""

    @property
    def groups(self) -> list[str]:
        """Groups that some node runs on: GPU groups in the spec's order, then the CPUs."""
        used = {c.group for c in self.costs.values()}
        return [g for g in (*self.cluster.groups, CPU) if g in used]

    def total(self, what: str) -> float:
        """Sum of one attribute of :class:`Cost` over all nodes."""
        return float(sum(getattr(c, what) for c in self.costs.values()))


def make_forecast(
    plan: Plan, embed_work: Mapping[str, Any], costs: Mapping[str, Cost] | None = None
) -> Forecast | None:
    """Estimate the costs of a plan and simulate its schedule; None if the spec has no ``cluster:``.

    Args:
        embed_work: the embed nodes' work, from :func:`pipelines.planning.embedding.estimate`.
        costs: node id → its cost, if they are known already.

    Raises:
        ValueError: A node could never run on the cluster.
    """
    cluster = plan.spec.cluster
    if cluster is None:
        return None
    costs = costs_of(plan, cluster, embed_work) if costs is None else costs
    lengths = path_lengths(plan)
    tasks = [
        Task(
            name=name,
            seconds=cost.seconds,
            needs=plan.verdicts[name].node.dependencies,
            group=cost.group,
            gang=cost.gang,
            priority=plan.verdicts[name].node.priority,
            path_length=lengths[name],
        )
        for name, cost in costs.items()
    ]
    capacity = {name: float(group.count) for name, group in cluster.groups.items()}
    schedule = simulate(tasks, {**capacity, CPU: float(plan.spec.cpus)})
    growth = growth_of(plan, cluster)
    return Forecast(cluster=cluster, costs=costs, schedule=schedule, growth=growth)


def assumptions(plan: Plan, forecast: Forecast) -> list[list[str]]:
    """What the figures are based on: a row (name, text) per stage, embedding and evaluation."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, cost in forecast.costs.items():
        node = plan.verdicts[name].node
        if not cost.how:
            continue
        what = stage_of(node) if node.kind in ("train", "embed") else node.kind
        network = ""
        if node.kind == "train":
            size = size_of(config_of(plan.spec, what))
            gflops = TRAINING_PASSES * size.flops / 1e9
            network = f"{size.parameters:,} parameters, {gflops:,.4g} GFLOPs an image; "
        found.setdefault((what, cost.how), [what, network + cost.how])
    return list(found.values())


def as_data(forecast: Forecast) -> dict[str, Any]:
    """The totals as JSON; in seconds, bytes, FLOPs and the cluster's currency."""
    schedule = forecast.schedule
    return {
        "makespan_s": schedule.makespan,
        "bounds_s": schedule.bounds,
        "above_bound": schedule.above,
        "critical_path": list(schedule.critical),
        "idle": {g: schedule.idle(g) for g in forecast.groups},
        "gpu_hours": forecast.total("gpu_hours"),
        "money": forecast.total("money"),
        "currency": forecast.cluster.currency,
        "kept_bytes": forecast.total("kept_bytes"),
        "written_bytes": forecast.total("written_bytes"),
        "growth": {s: {**c.__dict__, "gpu_hours": c.gpu_hours} for s, c in forecast.growth.items()},
    }


def cost_as_data(forecast: Forecast, node: str) -> dict[str, Any] | None:
    """One node's cost and start time as JSON; None if it need not run."""
    cost = forecast.costs.get(node)
    if cost is None:
        return None
    start = {"start_s": forecast.schedule.starts[node]}
    return {**cost.__dict__, "gpu_hours": cost.gpu_hours, **start}
