"""Metrics of images against their captions, by the names in a spec's ``evaluate.metrics``.

A package adds a metric with an entry point in the group ``ediffi.metrics`` that names its class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

GROUP = "ediffi.metrics"

Pictures = NDArray[np.uint8]
Values = NDArray[np.float64]
Progress = Callable[[int, int], None]
"""Called with the images seen and the total while a metric is fitted."""


class Metric(ABC):
    """One or more scores of images.

    A node of the pipeline calls :meth:`fit` once; evaluations call :meth:`open` on its result.
    """

    version: ClassVar[int] = 1
    """Version of the results; increase it to have everything measured again."""

    def __init__(self, **options: Any) -> None:
        """
        Args:
            options: as in the spec.

        Raises:
            TypeError, ValueError: An option is unknown or invalid.
        """
        if options:
            raise TypeError(f"takes no options, got {', '.join(options)}")

    def fit(
        self, folder: Path, *, resolutions: list[int], seed: int, progress: Progress
    ) -> dict[str, float]:
        """Train or prepare the metric, and store what it needs in ``folder``.

        Args:
            resolutions: sides in pixels of the images to be scored.

        Returns:
            Measurements of the metric's own accuracy.
        """
        return {}

    def open(self, folder: Path) -> None:  # noqa: B027 (nothing to open is fine)
        """Load what :meth:`fit` stored."""

    @abstractmethod
    def score(self, pictures: Pictures, captions: list[str]) -> dict[str, Values]:
        """Score images against their captions.

        Args:
            pictures: uint8 [N, R, R, 3].

        Returns:
            Score name → [N] values, larger is better, NaN where a caption does not ask for it.
            Names head the columns of tables: use short plurals.
        """

    def features(self, pictures: Pictures) -> NDArray[np.float32] | None:
        """Features [N, D] for a distance between sets of images; None if it has none."""
        return None


def metric(name: str, options: Mapping[str, Any]) -> Metric:
    """Create an unfitted metric.

    Raises:
        ValueError: No such metric is installed, or it does not take these options.
    """
    found = installed().get(name)
    if found is None:
        there = ", ".join(sorted(installed())) or "none"
        raise ValueError(
            f"metric {name!r} is not installed; there are {there}. "
            f"A package adds one with an entry point in the group {GROUP}"
        )
    kind: type[Metric] = found.load()
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metric {name!r}: {error}") from None


@cache
def installed() -> dict[str, EntryPoint]:
    """Name → entry point of every installed metric."""
    return {point.name: point for point in entry_points(group=GROUP)}
