"""The data of a quality–alignment curve: models, settings, and what was measured of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ediffi_core.distances import Measured
from pipelines.evaluation import scores, sweep

DISTANCES = frozenset({"fid", "kid", "cmmd", "neighbour_distance"})
"""Measures of features of which less is better."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A model with some sampling settings, measured."""

    setting: Mapping[str, Any]
    """The swept settings and their values here."""

    fingerprint: str
    measures: Mapping[str, Measured]

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Point:
        """The inverse of :meth:`to_json`."""
        measures = {name: Measured.from_json(one) for name, one in stored["measures"].items()}
        return Point(
            setting=stored["setting"], fingerprint=stored["fingerprint"], measures=measures
        )

    def check(self, *measures: str | None) -> None:
        """Check that some measures were measured; None is ignored.

        Raises:
            ValueError: One was not; names those that were.
        """
        for measure in measures:
            if measure is not None and measure not in self.measures:
                known = ", ".join(self.measures) or "nothing"
                raise ValueError(f"{measure!r} was not measured, only {known}")

    def to_json(self) -> dict[str, Any]:
        """All fields, JSON-ready."""
        return {
            "setting": dict(self.setting),
            "fingerprint": self.fingerprint,
            "measures": {name: value.to_json() for name, value in self.measures.items()},
        }


@dataclass(frozen=True, kw_only=True)
class Line:
    """The points of one model, along one axis."""

    model: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Values of the further axes."""

    points: Sequence[Point]

    @property
    def label(self) -> str:
        """For people: ``emoji-scenes, steps 20``."""
        return ", ".join(part for part in (self.model, sweep.label(self.fixed)) if part)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Everything in a report: what was measured, how, and the values."""

    title: str
    command: str
    along: str | None
    """Setting that the points of a line vary in; None if every line is one point."""

    alignment: str
    """Measure of the horizontal axis."""

    distance: str
    """Measure of the vertical axis."""

    about: Mapping[str, Any]
    """What holds for all points: data, captions, seed, measures."""

    lines: Sequence[Line]

    def to_json(self) -> dict[str, Any]:
        """The contents of ``points.json``."""
        lines = [
            {
                "model": line.model,
                "fixed": dict(line.fixed),
                "points": [p.to_json() for p in line.points],
            }
            for line in self.lines
        ]
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "lines"}
        return {"format": 1, **rest, "about": dict(self.about), "lines": lines}


def lower_is_better(measure: str) -> bool:
    """Whether less of a measure is better, such as of ``fid/inception``."""
    return scores.lower_is_better(measure) or measure.partition("/")[0] in DISTANCES


def best(points: Sequence[Point], alignment: str, distance: str) -> Point:
    """The best of some points: of those whose distance is within the 95 % interval of the smallest
    one, the point with the highest alignment."""
    nearest = min(points, key=lambda p: p.measures[distance].value).measures[distance]
    limit = nearest.high if math.isfinite(nearest.high) else nearest.value
    close = [p for p in points if p.measures[distance].value <= limit]
    return max(close, key=lambda p: p.measures[alignment].value)
