"""What a replica counts and times, and where the numbers go: its own memory, or Ray's metrics."""

from __future__ import annotations

from typing import Any, Protocol

from pipelines.runs.ray_meters import Metric

PICTURES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)

METRICS: dict[str, Metric] = {
    "ediffi_serve_pictures": Metric(
        kind="counter",
        about="Pictures by outcome: finished, cancelled, deadline, refused or failed",
        labels=("model", "outcome"),
    ),
    "ediffi_serve_queue_pictures": Metric(kind="gauge", about="Pictures that wait"),
    "ediffi_serve_drawing_pictures": Metric(kind="gauge", about="Pictures of the batch at work"),
    "ediffi_serve_batch_pictures": Metric(
        kind="histogram", about="Pictures of a batch", labels=("model",), buckets=PICTURES
    ),
    "ediffi_serve_waited_seconds": Metric(
        kind="histogram", about="Seconds of a picture in the queue"
    ),
    "ediffi_serve_picture_seconds": Metric(
        kind="histogram", about="Seconds from a request to its finished picture", labels=("model",)
    ),
    "ediffi_serve_first_preview_seconds": Metric(
        kind="histogram", about="Seconds from a request to the first preview of a picture"
    ),
    "ediffi_serve_step_seconds": Metric(
        kind="histogram",
        about="Seconds of a sampling step of a whole batch",
        labels=("stage", "expert"),
    ),
    "ediffi_serve_model_switches": Metric(
        kind="counter",
        about="Newer models that were switched to, or refused since they do not load or draw",
        labels=("outcome",),
    ),
}
"""Name → metric."""


class Meters(Protocol):
    """Takes the numbers, from any thread."""

    def add(self, name: str, value: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        ...

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        ...

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a value to a histogram."""
        ...


class LocalMeters:
    """Keeps the numbers in memory, for this process's own ``/metrics``."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        self._metrics: dict[str, Any] = {}
        for name, metric in METRICS.items():
            given: dict[str, Any] = {
                "name": name,
                "documentation": metric.about,
                "labelnames": metric.labels,
                "registry": self.registry,
            }
            if metric.kind == "histogram":
                self._metrics[name] = Histogram(**given, buckets=metric.buckets)
            else:
                kind = {"counter": Counter, "gauge": Gauge}[metric.kind]
                self._metrics[name] = kind(**given)

    def add(self, name: str, value: float = 1.0, **labels: str) -> None:
        """As of :class:`Meters`."""
        self._labelled(name, labels).inc(value)

    def set(self, name: str, value: float) -> None:
        """As of :class:`Meters`."""
        self._metrics[name].set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """As of :class:`Meters`."""
        self._labelled(name, labels).observe(value)

    def text(self) -> str:
        """All numbers in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry).decode()

    def _labelled(self, name: str, labels: dict[str, str]) -> Any:
        return self._metrics[name].labels(**labels) if labels else self._metrics[name]
