"""The results of a study's cells, as statistics and the report read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.spec.study import SEED, Model, Study

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Group:
    """One evaluated model of a cell: the ensemble, the single model, a baseline, a routing."""

    metrics: Mapping[str, float]
    """The evaluate node's metrics: means of the scores, losses and so on."""

    scores: Mapping[str, Values]
    """Measure → one value a validation picture, NaN where it does not apply. The pictures are the
    same for all groups of a data set. ``val_loss/1/8`` and so on are the strata of p(σ), lowest
    noise first."""

    images: int
    """Training images of its experts and all their ancestors, each training counted once."""

    parameters: int
    """Parameters of all its experts together."""

    active_parameters: int
    """Parameters of its largest expert: what one evaluation computes with."""

    training_seconds: float
    """Seconds that these trainings took."""

    intervals: Mapping[str, tuple[float, float]]
    """Expert → its interval of p(σ), as quantiles."""

    pictures: str
    """Path in the store of its sheet of samples."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The finished results of one cell."""

    name: str
    """Name of the pipeline: ``STUDY-emoji-two-s0``."""

    at: Mapping[str, str]
    """Axis → value, of all axes."""

    groups: Mapping[str, Group]
    """Evaluated group → its results."""

    measurements: Mapping[str, Any] = field(default_factory=dict)
    """Further measurements, as their nodes stored them: ``gradients/root``, and
    ``probe/<group>/<probe>``."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """All finished cells of a study."""

    study: Study
    cells: tuple[Cell, ...]

    @property
    def strata(self) -> list[str]:
        """Names of the strata's losses, lowest noise first: ``val_loss/1/8``, …"""
        names = {m for c in self.cells for g in c.groups.values() for m in g.scores}
        found = [name for name in names if name.removeprefix("val_loss/")[:1].isdigit()]
        return sorted(found, key=lambda name: int(name.split("/")[1]))

    def at(self, place: Mapping[str, str]) -> dict[str, Cell]:
        """Seed → cell, of the cells with these values of all other axes."""
        return {
            cell.at[SEED]: cell
            for cell in self.cells
            if all(cell.at[axis] == value for axis, value in place.items() if axis != SEED)
        }

    def models(self, model: Model, place: Mapping[str, str | int]) -> dict[str, Group]:
        """Seed → group, for a model at a place that its own ``at`` changes."""
        where = self.study.place(place, model.at)
        return {
            seed: cell.groups[model.group]
            for seed, cell in self.at(where).items()
            if model.group in cell.groups
        }
