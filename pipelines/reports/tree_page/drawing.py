"""Geometry of the page in percent of the width: log σ axis, p(σ) above it, gains around zero."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

CURVE_POINTS = 160
SHOWN_STDS = 3.4
"""Standard deviations of ln σ shown on each side of the mean."""

FIRST_HUE, LAST_HUE = 18.0, 262.0
"""Hues of the experts of the highest and the lowest noise."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A log σ axis from left to right that covers p(σ) and all sampling steps."""

    low: float
    high: float

    @staticmethod
    def covering(noise: Mapping[str, float], sigmas: Sequence[float]) -> Axis:
        """The axis for a noise distribution and the σ of the sampling steps."""
        mean, std = noise["P_mean"], noise["P_std"]
        low = min(math.exp(mean - SHOWN_STDS * std), *sigmas)
        high = max(math.exp(mean + SHOWN_STDS * std), *sigmas)
        return Axis(low=low / 1.25, high=high * 1.25)

    def at(self, sigma: float | None) -> float:
        """Position of σ in percent from the left, clipped to the axis; None stands for infinity."""
        if sigma is None or sigma >= self.high:
            return 100.0
        if sigma <= self.low:
            return 0.0
        return round(100 * math.log(sigma / self.low) / math.log(self.high / self.low), 2)

    def labels(self) -> list[tuple[float, str]]:
        """(position, text) of the powers of ten, without those close to an end."""
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        found = [(self.at(10.0**n), f"{10.0**n:g}") for n in range(first, last + 1)]
        return [(at, label) for at, label in found if 3 < at < 97]


def hues(names: Sequence[str]) -> dict[str, float]:
    """Expert → hue, from high noise to low; an expert in several slots has one hue."""
    once = list(dict.fromkeys(names))
    step = (LAST_HUE - FIRST_HUE) / max(len(once) - 1, 1)
    return {name: round(FIRST_HUE + i * step, 1) for i, name in enumerate(once)}


def curve(axis: Axis, noise: Mapping[str, float]) -> list[tuple[float, float]]:
    """Points (x, y) of p(ln σ) along the axis; y runs from 100 (zero) to 6 (maximum)."""

    def y(x: float) -> float:
        ln_sigma = math.log(axis.low) + x / 100 * math.log(axis.high / axis.low)
        z = (ln_sigma - noise["P_mean"]) / noise["P_std"]
        return round(100 - 94 * math.exp(-z * z / 2), 2)

    return [(x, y(x)) for x in (round(100 * i / CURVE_POINTS, 2) for i in range(CURVE_POINTS + 1))]


def path(points: Iterable[tuple[float, float]]) -> str:
    """An SVG path through points."""
    return "M" + " L".join(f"{x:g} {y:g}" for x, y in points)


def area(points: Sequence[tuple[float, float]], left: float, right: float) -> str:
    """An SVG path around the area under a curve, between two x."""

    def at(x: float) -> float:
        (x0, y0), (x1, y1) = next(pair for pair in pairwise(points) if x <= pair[1][0])
        return round(y0 + (y1 - y0) * (x - x0) / (x1 - x0), 2)

    inside = [p for p in points if left < p[0] < right]
    ends = (left, at(left)), (right, at(right))
    return path([(left, 100), ends[0], *inside, ends[1], (right, 100)]) + " Z"


def gains(experts: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Expert → position and text of its gain over the parent; all experts share one scale."""
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
