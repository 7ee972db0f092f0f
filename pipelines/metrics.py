"""Measures of pictures against their captions, by the names that a spec's ``evaluate.metrics`` has.

A package adds one by an entry point of the group ``ediffi.metrics`` that names its class.
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
"""Called with how many images of how many have been learned from."""


class Metric(ABC):
    """One measure, or several that are read off the same pictures.

    A node of the pipeline fits it once; whoever evaluates opens what that node has kept.
    """

    version: ClassVar[int] = 1
    """Of its results; a higher one has everything measured anew."""

    def __init__(self, **options: Any) -> None:
        """Args: options: as the spec writes them; TypeError or ValueError for what is unknown."""
        if options:
            raise TypeError(f"takes no options, got {', '.join(options)}")

    def fit(
        self, folder: Path, *, resolutions: list[int], seed: int, progress: Progress
    ) -> dict[str, float]:
        """Learns what it needs and keeps it in ``folder``; → its own accuracy, in numbers.

        Args:
            resolutions: sides of the pictures that it will be asked about.
        """
        return {}

    def open(self, folder: Path) -> None:  # noqa: B027 (nothing to open is fine)
        """Takes up what :meth:`fit` has kept."""

    @abstractmethod
    def score(self, pictures: Pictures, captions: list[str]) -> dict[str, Values]:
        """What it measures → a value a picture, NaN where its caption asks for nothing of the kind.

        Larger is better. Names are short plurals, for they head the columns of tables.

        Args:
            pictures: [N, R, R, 3].
        """

    def features(self, pictures: Pictures) -> NDArray[np.float32] | None:
        """[N, D] for a distance between sets of pictures, where it has such features."""
        return None


def metric(name: str, options: Mapping[str, Any]) -> Metric:
    """An unfitted one.

    Raises:
        ValueError: None of the name is installed, or it does not take these options.
    """
    found = installed().get(name)
    if found is None:
        there = ", ".join(sorted(installed())) or "none"
        raise ValueError(
            f"metric {name!r} is not installed; there are {there}. A package adds one by an entry "
            f"point of the group {GROUP}"
        )
    kind: type[Metric] = found.load()
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metric {name!r}: {error}") from None


@cache
def installed() -> dict[str, EntryPoint]:
    """Name → where its class is."""
    return {point.name: point for point in entry_points(group=GROUP)}
