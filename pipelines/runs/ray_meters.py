"""Metrics that Ray exports for Prometheus: what each is, and how a process hands in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric. Prometheus adds ``_total`` to a counter's name, and Ray ``ray_`` before all."""

    kind: Literal["counter", "gauge", "histogram"]
    about: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = SECONDS
    """Upper bounds of a histogram's buckets."""


class RayMeters:
    """Hands numbers to Ray, whose agents export those of all processes."""

    def __init__(self, declared: Mapping[str, Metric]) -> None:
        """
        Args:
            declared: name → metric.
        """
        from ray.util import metrics

        self._metrics: dict[str, Any] = {}
        for name, metric in declared.items():
            given: dict[str, Any] = {"description": metric.about, "tag_keys": metric.labels}
            if metric.kind == "histogram":
                given["boundaries"] = list(metric.buckets)
            kind = {
                "counter": metrics.Counter,
                "gauge": metrics.Gauge,
                "histogram": metrics.Histogram,
            }[metric.kind]
            self._metrics[name] = kind(name, **given)

    def add(self, name: str, value: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        self._metrics[name].inc(value, tags=labels)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._metrics[name].set(value, tags=labels)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a value to a histogram."""
        self._metrics[name].observe(value, tags=labels)
