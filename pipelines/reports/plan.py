"""A plan as text and as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ediffi_core.noise import Interval, NoiseDistribution
from pipelines.dag.plan import SINGLE, Node, Plan, Verdict, growth_budget_left, images_to_train
from pipelines.formatting import duration, gigabytes, number, rows_of
from pipelines.planning import embedding as estimate
from pipelines.planning.cost import CPU
from pipelines.planning.outlook import Outlook, as_data, cost_as_data, reckoned
from pipelines.reports.tree import interval_text


def sigma_range(node: Node) -> dict[str, float | None] | None:
    if node.kind != "train":
        return None
    noise = NoiseDistribution(**node.settings["noise"])
    low, high = Interval(*node.settings["interval"]).bounds(noise)
    return {"sigma_lo": low, "sigma_hi": None if high == float("inf") else high}


def parent_of(plan: Plan, node: Node) -> str | None:
    """The expert that a node is drawn below."""
    parent = node.inputs.get("parent")
    return parent if parent in plan.verdicts else None


def in_tree(plan: Plan) -> Iterator[tuple[str, Verdict]]:
    """Every node with the branches before its name: experts below their parents, high noise first,
    all else in the plan's order."""

    def below(parent: str | None, lines: str) -> Iterator[tuple[str, Verdict]]:
        mine = [v for v in plan.verdicts.values() if parent_of(plan, v.node) == parent]
        if parent is not None:
            mine.sort(key=lambda v: _place(v.node))
        for v in mine:
            last = v is mine[-1]
            yield ("" if parent is None else lines + ("└─ " if last else "├─ ")), v
            yield from below(
                v.node.id, "" if parent is None else lines + ("   " if last else "│  ")
            )

    return below(None, "")


def _place(node: Node) -> tuple[bool, float]:
    sigma = sigma_range(node) or {}
    return node.settings.get("expert") == SINGLE, -(sigma.get("sigma_lo") or 0.0)


def waits_for(plan: Plan, node: Node) -> list[str]:
    """What a node waits for that must run itself; what that waits for in turn goes unsaid."""
    running = [n for n in node.dependencies if not plan.verdicts[n].cached]
    implied = {above for n in running for above in _above(plan, n)}
    return [n for n in running if n not in implied]


def _above(plan: Plan, node_id: str) -> set[str]:
    needs = plan.verdicts[node_id].node.dependencies
    return set(needs).union(*(_above(plan, n) for n in needs))


def data(
    plan: Plan, ahead: Mapping[str, Any] | None = None, outlook: Outlook | None = None
) -> dict[str, Any]:
    """Args: ahead: of embed nodes, as :func:`pipelines.planning.embedding.ahead` reckons."""
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
            "loss_draws": draws_of(v.node),
            "folder": v.folder,
            **({"work": ahead[v.node.id]} if ahead and v.node.id in ahead else {}),
            **({"cost": cost_as_data(outlook, v.node.id)} if outlook else {}),
        }
        for v in plan.verdicts.values()
    ]
    found = {"pipeline": plan.spec.name, "fingerprint": plan.fingerprint, "nodes": nodes}
    return {**found, "outlook": as_data(outlook)} if outlook else found


def text(plan: Plan, ahead: Mapping[str, Any] | None = None, outlook: Outlook | None = None) -> str:
    shown = list(in_tree(plan))
    cells = [
        [
            f"{'reuse' if v.cached else 'run':<5}  {branches}{v.node.id}",
            *_of_expert(plan, v.node),
            *(_figures(outlook, v.node.id) if outlook else ()),
            v.why,
        ]
        for branches, v in shown
    ]
    lines = [f"{plan.spec.name}: {len(plan.verdicts)} nodes", ""]
    for row, (branches, v) in zip(rows_of(cells, right=range(2, len(cells[0]) - 1)), shown):
        lines.append(row)
        waits = [] if v.cached else waits_for(plan, v.node)
        if waits and waits != [parent_of(plan, v.node)]:
            lines.append(f"         {' ' * len(branches)}waits for {', '.join(waits)}")
        if ahead and v.node.id in ahead:
            lines += [f"         {line}" for line in estimate.lines(ahead[v.node.id])]
        if measured := draws_of(v.node):
            told = ", ".join(f"{name} {count:,}" for name, count in measured.items())
            lead = f"         {' ' * len(branches)}"
            lines.append(f"{lead}draws of the losses in each expert's interval: {told}")
    todo = [v for v in plan.verdicts.values() if not v.cached]
    total = sum(images_to_train(plan, v.node) or 0 for v in todo)
    reused = len(plan.verdicts) - len(todo)
    grows = "".join(
        f", and up to {n:,} more as {s} grows" for s, n in growth_budget_left(plan).items()
    )
    lines += ["", f"{len(todo)} to run, {reused} reused; {total:,} images to train{grows}"]
    return "\n".join([*lines, *(summary(plan, outlook) if outlook and todo else ())])


def draws_of(node: Node) -> dict[str, int] | None:
    """Expert → draws of its interval that an ensemble, and whoever it is compared with, is measured
    on; the highest noise first."""
    if node.kind != "evaluate" or not node.name.endswith("/ensemble"):
        return None
    how = node.settings["losses"]
    falling = sorted(how["experts"], key=lambda name: -how["experts"][name][0])
    return dict.fromkeys(falling, how["draws"])


def schedule_of(node: Node) -> str | None:
    """What becomes of the learning rate."""
    if node.kind != "train":
        return None
    return str(node.settings["training"].get("schedule", "constant"))


def _of_expert(plan: Plan, node: Node) -> list[str]:
    sigma, images = sigma_range(node), images_to_train(plan, node)
    if sigma is None:
        return ["", "", ""]
    schedule = schedule_of(node) or ""
    return [
        interval_text(sigma),
        f"{images:,} images",
        schedule if schedule != "constant" else "",
    ]


def _figures(outlook: Outlook, node: str) -> list[str]:
    """GPU-hours, storage, money and time of a node that must run; nothing where they are none."""
    cost = outlook.costs.get(node)
    if cost is None:
        return [""] * 4
    return [
        f"{number(cost.gpu_hours)} GPU-h" if cost.gpu_hours else "",
        gigabytes(cost.kept_bytes) if cost.kept_bytes else "",
        f"{number(cost.money)} {outlook.cluster.currency}" if cost.money else "",
        duration(cost.seconds) if cost.seconds else "",
    ]


def summary(plan: Plan, outlook: Outlook) -> list[str]:
    """What it comes to, what it waits for, and how the figures were reckoned."""
    schedule, cluster = outlook.schedule, outlook.cluster
    sizes = [f"{g.count:,} {g.gpu} ({n})" for n, g in cluster.groups.items()]
    sizes += [f"{plan.spec.cpus} CPUs"] if CPU in outlook.groups else []
    tightest = max(schedule.bounds, key=lambda b: schedule.bounds[b])
    rows = [
        [
            "cost",
            f"{number(outlook.total('gpu_hours'))} GPU-hours, "
            f"{number(outlook.total('money'))} {cluster.currency}",
        ],
        [
            "storage",
            f"{gigabytes(outlook.total('kept_bytes'))} kept of "
            f"{gigabytes(outlook.total('written_bytes'))} written",
        ],
        ["time", f"{duration(schedule.makespan)} on {', '.join(sizes)}"],
        [
            "",
            f"{schedule.above * 100:.1f} % above the lower bound: {tightest}, "
            f"{duration(schedule.bound)}",
        ],
        ["idle", ", ".join(f"{g} {schedule.idle(g) * 100:.0f} %" for g in outlook.groups)],
        [
            "critical path",
            f"{duration(schedule.critical_seconds)}: "
            + " → ".join(n for n in schedule.critical if outlook.costs[n].seconds),
        ],
    ]
    rows += [
        [
            "not in it",
            f"{stage} may grow by {number(cost.gpu_hours)} GPU-hours, {duration(cost.seconds)}, "
            f"{number(cost.money)} {cluster.currency} at most, and what then follows",
        ]
        for stage, cost in outlook.growth.items()
    ]
    return ["", *rows_of(rows), "", "reckoned by", *rows_of(reckoned(plan, outlook))]
