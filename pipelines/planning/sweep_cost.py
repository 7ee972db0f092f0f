"""Cost of drawing the pictures of a quality–alignment curve, before any is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ediffi_core.checkpoint import read_card
from pipelines.formatting import duration
from pipelines.planning.cost import CPU_FLOPS, money_for
from pipelines.planning.encoder_cost import SECONDS_PER_HOUR
from pipelines.planning.network_size import size_of
from pipelines.spec.cluster import Group
from pipelines.spec.sampling import Sampling
from pipelines.store.artifacts import Store


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """Cost of one stage of one point."""

    name: str
    calls: int
    """Network calls for one picture; guidance doubles them."""

    flops: float
    """FLOPs of one call, at the stage's full resolution."""

    precision: str


@dataclass(frozen=True, kw_only=True)
class PointCost:
    """Cost of one point of a curve that is still to be drawn."""

    pictures: int
    stages: Sequence[StageCost]

    @property
    def flops(self) -> float:
        """FLOPs of all pictures: pictures × network calls × a forward pass, over the stages."""
        return self.pictures * sum(stage.calls * stage.flops for stage in self.stages)

    def seconds(self, group: Group | None, cpus: int) -> float:
        """Time on one GPU: FLOPs ÷ (its peak × utilisation); on CPUs without a GPU."""
        if group is None:
            return self.flops / (CPU_FLOPS * cpus)
        each = (
            stage.calls * stage.flops / (group.peak(_peak_of(stage.precision)) * group.utilisation)
            for stage in self.stages
        )
        return self.pictures * sum(each)


def _peak_of(precision: str) -> str:
    """The precision of a GPU's data sheet; float16 has the peak of bfloat16."""
    return "float32" if precision == "float32" else "bfloat16"


def cost_of(
    store: Store,
    stages: Sequence[Mapping[str, Any]],
    weights: Mapping[str, Mapping[str, Any]],
    pictures: int,
) -> PointCost:
    """Cost of drawing with a cascade.

    Args:
        stages, weights: As for :func:`pipelines.models.stages.load_stages`.

    Raises:
        ValueError: A checkpoint cannot be read.
    """
    found = []
    for stage in stages:
        slot = next(iter(stage["experts"]))
        path = weights[f"{stage['name']}/{slot}"]["path"]
        sampling = Sampling.from_settings(stage["sampling"])
        network = read_card(store.local(path)).network
        found.append(
            StageCost(
                name=stage["name"],
                calls=sampling.network_calls,
                flops=size_of(network, stage["resolution"]).flops,
                precision=sampling.precision,
            )
        )
    return PointCost(pictures=pictures, stages=found)


def text(
    costs: Sequence[PointCost], done: int, group: Group | None, *, cpus: int, currency: str = "USD"
) -> str:
    """The cost of a curve for people.

    Args:
        costs: Of the points that are still to be drawn.
        done: Number of points that are cached.
        group: The kind of GPU; None for CPUs.
        cpus: CPUs, where there is no GPU.
    """
    cached = f", {done} more are done" if done else ""
    if not costs:
        return f"nothing to draw: all {done} points are done"
    pictures, flops = sum(c.pictures for c in costs), sum(c.flops for c in costs)
    seconds = sum(c.seconds(group, cpus) for c in costs)
    lines = [
        f"points to draw  {len(costs)}{cached}",
        f"pictures        {pictures:,} = {len(costs)} × {costs[0].pictures:,}",
        f"network calls   {_calls(costs)} a picture; guided ones count twice",
        f"network FLOPs   {flops:.3g} = pictures × Σ over stages of calls × FLOPs of a call "
        f"({_sizes(costs[0])})",
    ]
    if group is None:
        how = f"{cpus} CPUs × {CPU_FLOPS / 1e9:.0f} GFLOP/s"
        return "\n".join([*lines, f"time            {duration(seconds)} on {how}"])
    peaks = {_peak_of(s.precision) for c in costs for s in c.stages}
    how = ", ".join(f"{group.peak(p) / 1e12:g} TFLOP/s ({p})" for p in sorted(peaks))
    lines.append(
        f"GPU-hours       {seconds / SECONDS_PER_HOUR:,.3g} on {group.gpu}: FLOPs ÷ ({how} × "
        f"{group.utilisation * 100:g} % assumed)"
    )
    if group.price:
        money = money_for(group.price, 1, seconds)
        lines.append(
            f"money           {money:,.2f} {currency} at {group.price:g} {currency} per GPU-hour"
        )
    lines.append("not counted     encoding captions, and the networks that measure")
    return "\n".join(lines)


def _calls(costs: Sequence[PointCost]) -> str:
    found = []
    for stages in zip(*(c.stages for c in costs), strict=True):
        calls = sorted({stage.calls for stage in stages})
        span = f"{calls[0]}" if len(calls) == 1 else f"{calls[0]} to {calls[-1]}"
        found.append(f"{stages[0].name} {span}")
    return ", ".join(found)


def _sizes(cost: PointCost) -> str:
    return ", ".join(f"{s.name} {s.flops / 1e9:,.3g} GFLOPs" for s in cost.stages)
