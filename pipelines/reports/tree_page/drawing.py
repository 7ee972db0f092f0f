"""What is drawn, in percent of the width: the axis of log σ, p(σ) over it, gains about a zero."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

POINTS = 160  # of the curve
REACH = 3.4  # standard deviations of ln σ that are shown on each side
WARM, COLD = 18.0, 262.0
"""Hues of the expert of the highest and of the lowest noise."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """log σ from left to right; all of p(σ) that matters and every sampling step are on it."""

    low: float
    high: float

    @staticmethod
    def of(noise: Mapping[str, float], sigmas: Sequence[float]) -> Axis:
        mean, std = noise["P_mean"], noise["P_std"]
        low = min(math.exp(mean - REACH * std), *sigmas)
        high = max(math.exp(mean + REACH * std), *sigmas)
        return Axis(low=low / 1.25, high=high * 1.25)

    def at(self, sigma: float | None) -> float:
        """Percent from the left; what lies beyond an end is at that end, None at the right one."""
        if sigma is None or sigma >= self.high:
            return 100.0
        if sigma <= self.low:
            return 0.0
        return round(100 * math.log(sigma / self.low) / math.log(self.high / self.low), 2)

    def labels(self) -> list[tuple[float, str]]:
        """Powers of ten that stand clear of both ends."""
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        found = [(self.at(10.0**n), f"{10.0**n:g}") for n in range(first, last + 1)]
        return [(at, label) for at, label in found if 3 < at < 97]


def hues(names: Sequence[str]) -> dict[str, float]:
    """A hue for each expert of an ensemble, the highest noise first; one may have many seats."""
    once = list(dict.fromkeys(names))
    step = (COLD - WARM) / max(len(once) - 1, 1)
    return {name: round(WARM + i * step, 1) for i, name in enumerate(once)}


def curve(axis: Axis, noise: Mapping[str, float]) -> list[tuple[float, float]]:
    """p(ln σ) along the axis: x, and y from 100 (nothing) to 6 (its highest)."""

    def y(x: float) -> float:
        ln_sigma = math.log(axis.low) + x / 100 * math.log(axis.high / axis.low)
        z = (ln_sigma - noise["P_mean"]) / noise["P_std"]
        return round(100 - 94 * math.exp(-z * z / 2), 2)

    return [(x, y(x)) for x in (round(100 * i / POINTS, 2) for i in range(POINTS + 1))]


def path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + " L".join(f"{x:g} {y:g}" for x, y in points)


def area(points: Sequence[tuple[float, float]], left: float, right: float) -> str:
    """What lies under a curve from one x to another."""

    def at(x: float) -> float:
        (x0, y0), (x1, y1) = next(pair for pair in pairwise(points) if x <= pair[1][0])
        return round(y0 + (y1 - y0) * (x - x0) / (x1 - x0), 2)

    inside = [p for p in points if left < p[0] < right]
    ends = (left, at(left)), (right, at(right))
    return path([(left, 100), ends[0], *inside, ends[1], (right, 100)]) + " Z"


def gains(experts: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Expert → where its gain over the parent lies on the scale that all of a stage share."""
    measured = {n: e["metrics"] for n, e in experts.items() if "val_gain" in e["metrics"]}
    low: float = min([0.0, *(m["val_gain_low"] for m in measured.values())])
    high: float = max([0.0, *(m["val_gain_high"] for m in measured.values())])
    margin = 0.06 * (high - low) or 1.0
    length = high - low + 2 * margin

    def at(gain: float) -> float:
        return round(100 * (gain - low + margin) / length, 2)

    return {
        name: {
            "zero": at(0),
            "low": at(m["val_gain_low"]),
            "width": round(at(m["val_gain_high"]) - at(m["val_gain_low"]), 2),
            "middle": at(m["val_gain"]),
            "kind": "better"
            if m["val_gain_low"] > 0
            else "worse"
            if m["val_gain_high"] < 0
            else "unsure",
            "text": signed(m["val_gain"]),
            "between": f"[{signed(m['val_gain_low'])}, {signed(m['val_gain_high'])}]",
        }
        for name, m in measured.items()
    }


def signed(gain: float) -> str:
    return f"{gain:+.4f}".replace("-", "−")
