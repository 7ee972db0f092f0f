"""Show a plan, as text for the terminal and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ediffi_core import tree
from ediffi_core.noise import Interval, NoiseDistribution
from pipelines.dag.plan import Node, Plan, Verdict, growth_budget_left, images_to_train
from pipelines.formatting import align_columns, byte_size, duration, number
from pipelines.planning import embedding
from pipelines.planning.cost import CPU
from pipelines.planning.forecast import Forecast, as_data, assumptions, cost_as_data
from pipelines.reports.tree import interval_text


def sigma_range(node: Node) -> dict[str, float | None] | None:
    """The σ interval of a training node (``sigma_hi`` None: infinity); None for other nodes."""
    if node.kind != "train":
        return None
    noise = NoiseDistribution(**node.settings["noise"])
    low, high = Interval(*node.settings["interval"]).bounds(noise)
    return {"sigma_lo": low, "sigma_hi": None if high == float("inf") else high}


def parent_of(plan: Plan, node: Node) -> str | None:
    """Node id of an expert's parent, if that is part of the plan."""
    parent = node.inputs.get("parent")
    return parent if parent in plan.verdicts else None


def tree_order(plan: Plan) -> Iterator[tuple[str, Verdict]]:
    """Every node with the branches to draw before its name.

    Experts come below their parents, high noise first; all other nodes in the plan's order.
    """

    def below(parent: str | None, lines: str) -> Iterator[tuple[str, Verdict]]:
        children = [v for v in plan.verdicts.values() if parent_of(plan, v.node) == parent]
        if parent is not None:
            children.sort(key=lambda v: _sibling_order(v.node))
        for v in children:
            last = v is children[-1]
            yield ("" if parent is None else lines + ("└─ " if last else "├─ ")), v
            yield from below(
                v.node.id, "" if parent is None else lines + ("   " if last else "│  ")
            )

    return below(None, "")


def _sibling_order(node: Node) -> tuple[bool, float]:
    sigma = sigma_range(node) or {}
    return not tree.is_expert(node.settings["expert"]), -(sigma.get("sigma_lo") or 0.0)


def waits_for(plan: Plan, node: Node) -> list[str]:
    """Nodes still to run that a node waits for directly; what those wait for is left out."""
    running = [n for n in node.dependencies if not plan.verdicts[n].cached]
    implied = {a for n in running for a in _ancestors(plan, n)}
    return [n for n in running if n not in implied]


def _ancestors(plan: Plan, node_id: str) -> set[str]:
    needs = plan.verdicts[node_id].node.dependencies
    return set(needs).union(*(_ancestors(plan, n) for n in needs))


def data(
    plan: Plan, embed_work: Mapping[str, Any] | None = None, forecast: Forecast | None = None
) -> dict[str, Any]:
    """The plan as JSON.

    Args:
        embed_work: the embed nodes' work, from :func:`pipelines.planning.embedding.estimate`.
        forecast: costs and schedule, if the spec has a ``cluster:``.
    """
    nodes = [
        {
            "id": v.node.id,
            "fingerprint": v.fingerprint,
            "cached": v.cached,
            "why": v.why,
            "waits_for": v.node.dependencies,
            "parent": parent_of(plan, v.node),
            "cpus": v.node.cpus,
            "images": images_to_train(plan, v.node),
            "schedule": schedule_of(v.node),
            "sigma": sigma_range(v.node),
            **training_noise(v.node),
            "loss_draws": loss_draws(v.node),
            "folder": v.folder,
            **({"work": embed_work[v.node.id]} if embed_work and v.node.id in embed_work else {}),
            **({"cost": cost_as_data(forecast, v.node.id)} if forecast else {}),
        }
        for v in plan.verdicts.values()
    ]
    found = {"pipeline": plan.spec.name, "fingerprint": plan.fingerprint, "nodes": nodes}
    return {**found, "outlook": as_data(forecast)} if forecast else found


def text(
    plan: Plan, embed_work: Mapping[str, Any] | None = None, forecast: Forecast | None = None
) -> str:
    """The plan for the terminal; arguments as for :func:`data`."""
    shown = list(tree_order(plan))
    cells = [
        [
            f"{'reuse' if v.cached else 'run':<5}  {branches}{v.node.id}",
            *_expert_cells(plan, v.node),
            *(_cost_cells(forecast, v.node.id) if forecast else ()),
            v.why,
        ]
        for branches, v in shown
    ]
    lines = [f"{plan.spec.name}: {len(plan.verdicts)} nodes", ""]
    for row, (branches, v) in zip(align_columns(cells, right=range(2, len(cells[0]) - 1)), shown):
        lines.append(row)
        waits = [] if v.cached else waits_for(plan, v.node)
        if waits and waits != [parent_of(plan, v.node)]:
            lines.append(f"         {' ' * len(branches)}waits for {', '.join(waits)}")
        if embed_work and v.node.id in embed_work:
            lines += [f"         {x}" for x in embedding.describe(embed_work[v.node.id])]
        if draws := loss_draws(v.node):
            counts = ", ".join(f"{name} {count:,}" for name, count in draws.items())
            lead = f"         {' ' * len(branches)}"
            of = "share of p(σ)" if plan.spec.evaluate.losses.strata else "expert's interval"
            lines.append(f"{lead}loss draws per {of}: {counts}")
    todo = [v for v in plan.verdicts.values() if not v.cached]
    total = sum(images_to_train(plan, v.node) or 0 for v in todo)
    reused = len(plan.verdicts) - len(todo)
    grows = "".join(
        f", and up to {n:,} more as {s} grows" for s, n in growth_budget_left(plan).items()
    )
    lines += ["", f"{len(todo)} to run, {reused} reused; {total:,} images to train{grows}"]
    return "\n".join([*lines, *(summary(plan, forecast) if forecast and todo else ())])


def loss_draws(node: Node) -> dict[str, int] | None:
    """Expert, or share of p(σ) → loss draws there when an ensemble is evaluated, high noise first.

    The models it is compared with are measured on the same draws. None for other nodes.
    """
    if node.kind != "evaluate" or not node.name.endswith("/ensemble"):
        return None
    how = node.settings["losses"]
    experts = sorted(how["experts"], key=lambda name: -how["experts"][name][0])
    return dict.fromkeys(experts, how["draws"])


def schedule_of(node: Node) -> str | None:
    """Learning-rate schedule of a training node."""
    if node.kind != "train":
        return None
    return str(node.settings["training"].get("schedule", "constant"))


def _expert_cells(plan: Plan, node: Node) -> list[str]:
    sigma, images = sigma_range(node), images_to_train(plan, node)
    if sigma is None:
        return ["", "", ""]
    schedule = schedule_of(node) or ""
    weight = node.settings["training"].get("loss_weight", "")
    how = [schedule if schedule != "constant" else "", weight, outside_text(node)]
    return [interval_text(sigma), f"{images:,} images", ", ".join(filter(None, how))]


def training_noise(node: Node) -> dict[str, Any]:
    """``density`` and ``loss_weight`` of a training node, where they are not the defaults."""
    weight = node.settings.get("training", {}).get("loss_weight")
    given = {"density": node.settings.get("density"), "loss_weight": weight}
    return {name: value for name, value in given.items() if value}


def outside_text(node: Node) -> str:
    """``20 % outside``: the share of draws outside a training node's interval; empty for none."""
    own = Interval(*node.settings["interval"])
    rows = node.settings.get("density", [])
    outside = math.fsum(w for lo, hi, w in rows if not own.holds(Interval(lo, hi)))
    return f"{outside * 100:.3g} % outside" if outside else ""


def _cost_cells(forecast: Forecast, node: str) -> list[str]:
    """GPU-hours, storage, money and time of a node that must run; empty where they are zero."""
    cost = forecast.costs.get(node)
    if cost is None:
        return [""] * 4
    return [
        f"{number(cost.gpu_hours)} GPU-h" if cost.gpu_hours else "",
        byte_size(cost.kept_bytes) if cost.kept_bytes else "",
        f"{number(cost.money)} {forecast.cluster.currency}" if cost.money else "",
        duration(cost.seconds) if cost.seconds else "",
    ]


def summary(plan: Plan, forecast: Forecast) -> list[str]:
    """Totals, schedule, critical path, and what the figures are based on."""
    based_on = align_columns(assumptions(plan, forecast))
    return ["", *totals(plan, forecast), "", "based on", *based_on]


def totals(plan: Plan, forecast: Forecast) -> list[str]:
    """Cost, storage, time, idle GPUs and critical path."""
    schedule, cluster = forecast.schedule, forecast.cluster
    sizes = [f"{g.count:,} {g.gpu} ({n})" for n, g in cluster.groups.items()]
    sizes += [f"{plan.spec.cpus} CPUs"] if CPU in forecast.groups else []
    tightest = max(schedule.bounds, key=lambda b: schedule.bounds[b])
    rows = [
        [
            "cost",
            f"{number(forecast.total('gpu_hours'))} GPU-hours, "
            f"{number(forecast.total('money'))} {cluster.currency}",
        ],
        [
            "storage",
            f"{byte_size(forecast.total('kept_bytes'))} kept of "
            f"{byte_size(forecast.total('written_bytes'))} written",
        ],
        ["time", f"{duration(schedule.makespan)} on {', '.join(sizes)}"],
        [
            "",
            f"{schedule.above * 100:.1f} % above the lower bound of {duration(schedule.bound)} "
            f"({tightest})",
        ],
        ["idle", ", ".join(f"{g} {schedule.idle(g) * 100:.0f} %" for g in forecast.groups)],
        [
            "critical path",
            f"{duration(schedule.critical_seconds)}: "
            + " → ".join(n for n in schedule.critical if forecast.costs[n].seconds),
        ],
    ]
    rows += [
        [
            "not included",
            f"growth of {stage}: at most {number(cost.gpu_hours)} GPU-hours, "
            f"{duration(cost.seconds)}, {number(cost.money)} {cluster.currency}, and what follows",
        ]
        for stage, cost in forecast.growth.items()
    ]
    return align_columns(rows)
