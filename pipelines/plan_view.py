"""A plan as text and as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ediffi_core.noise import Interval, NoiseDistribution
from pipelines.data import estimate
from pipelines.plan import Node, Plan
from pipelines.tree_view import interval_text


def sigma_range(node: Node) -> dict[str, float | None] | None:
    if node.kind != "train":
        return None
    noise = NoiseDistribution(**node.settings["noise"])
    low, high = Interval(*node.settings["interval"]).bounds(noise)
    return {"sigma_lo": low, "sigma_hi": None if high == float("inf") else high}


def waits_for(plan: Plan, node: Node) -> list[str]:
    """What a node waits for that must run itself; what that waits for in turn goes unsaid."""
    running = [n for n in node.needs if not plan.verdicts[n].cached]
    implied = {above for n in running for above in _above(plan, n)}
    return [n for n in running if n not in implied]


def _above(plan: Plan, node_id: str) -> set[str]:
    needs = plan.verdicts[node_id].node.needs
    return set(needs).union(*(_above(plan, n) for n in needs))


def data(plan: Plan, ahead: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Args: ahead: of embed nodes, as :func:`pipelines.data.estimate.ahead` reckons."""
    nodes = [
        {
            "id": v.node.id,
            "fingerprint": v.fingerprint,
            "cached": v.cached,
            "why": v.why,
            "waits_for": v.node.needs,
            "cpus": v.node.cpus,
            "images": images_to_train(plan, v.node),
            "sigma": sigma_range(v.node),
            "folder": v.folder,
            **({"work": ahead[v.node.id]} if ahead and v.node.id in ahead else {}),
        }
        for v in plan.verdicts.values()
    ]
    return {"pipeline": plan.spec.name, "fingerprint": plan.fingerprint, "nodes": nodes}


def text(plan: Plan, ahead: Mapping[str, Any] | None = None) -> str:
    lines, total = [f"{plan.spec.name}: {len(plan.verdicts)} nodes", ""], 0
    for v in plan.verdicts.values():
        sigma, images = sigma_range(v.node), images_to_train(plan, v.node)
        if images and not v.cached:
            total += images
        what = f"{interval_text(sigma):<24} {images:>8,} images" if sigma else " " * 40
        lines.append(
            f"{'reuse' if v.cached else 'run  '}  {v.node.id:<24} {what}  {v.why}".rstrip()
        )
        if not v.cached and (waits := waits_for(plan, v.node)):
            lines.append(f"         waits for {', '.join(waits)}")
        if ahead and v.node.id in ahead:
            lines += [f"         {line}" for line in estimate.lines(ahead[v.node.id])]
    run = sum(not v.cached for v in plan.verdicts.values())
    lines += ["", f"{run} to run, {len(plan.verdicts) - run} reused; {total:,} images to train"]
    return "\n".join(lines)
