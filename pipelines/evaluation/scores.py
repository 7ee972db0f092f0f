"""Scores per picture: stored beside an evaluation, and compared in pairs.

Two models that are measured on the same captions, seeds, σ and ε are compared picture by picture.
So differences between pictures, far larger than those between models, cancel out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ediffi_core.metrics import Estimate, paired_gain
from pipelines.store.artifacts import Store

FILE = "scores.json"

LOWER_IS_BETTER = frozenset({"val_loss", "kernel_distance"})
"""Measures where less is better; for all others, more is."""


def lower_is_better(measure: str) -> bool:
    """Whether less is better, for a measure or a part of one, such as ``val_loss/E9_511``."""
    return measure.partition("/")[0] in LOWER_IS_BETTER


Scores = dict[str, Tensor]
"""Measure → one value per picture, NaN where the caption does not ask for it. [N] float64"""


def write(store: Store, folder: str, scores: Mapping[str, Tensor]) -> None:
    """Write :data:`FILE` into an evaluation's folder."""
    store.write_json(f"{folder}/{FILE}", {name: to_json(v) for name, v in scores.items()})


def read(store: Store, folder: str) -> Scores:
    """Read an evaluation's scores; ValueError if the file is missing."""
    return {
        name: from_json(values) for name, values in read_required_json(store, folder, FILE).items()
    }


def read_required_json(store: Store, folder: str, file: str) -> dict[str, Any]:
    """Read a JSON file of an evaluation; ValueError if it is missing."""
    found = store.read_json(f"{folder}/{file}")
    if found is None:
        raise ValueError(
            f"{store.full(folder)} has lost its {file}; remove the folder and run again"
        )
    return dict(found)


def to_json(values: Tensor) -> list[float | None]:
    """A column as JSON values, with None for NaN."""
    return [None if math.isnan(v) else v for v in values.tolist()]


def finite(value: float) -> float | None:
    """A number as a JSON value, with None for NaN and infinity."""
    return value if math.isfinite(value) else None


def from_json(values: Sequence[float | None]) -> Tensor:
    """The inverse of :func:`to_json`. [N] float64"""
    return torch.tensor([math.nan if v is None else v for v in values], dtype=torch.float64)


def summary(scores: Mapping[str, Tensor], prefix: str = "") -> dict[str, float]:
    """Mean of each measure over the pictures that it applies to.

    Args:
        scores: Values per picture.
        prefix: Prefix of the names.

    Returns:
        The mean of each measure; its number of pictures as ``…_pictures``; and half the width of
        its 95 % confidence interval as ``…_ci95``.
    """
    found = {}
    for name, values in scores.items():
        applicable = values if lower_is_better(name) else values[~values.isnan()]
        if not len(applicable):
            continue
        estimate = Estimate.of(applicable)
        found[f"{prefix}{name}"] = estimate.mean
        found[f"{prefix}{name}_pictures"] = len(applicable)
        if len(applicable) > 1:
            found[f"{prefix}{name}_ci95"] = (estimate.high - estimate.low) / 2
    return found


def gain(mine: Scores, theirs: Scores, measure: str) -> Estimate:
    """Mean paired gain of ``mine`` over ``theirs``; above 0 is better, for every measure."""
    return gain_of(*paired(mine, theirs, measure), measure)


def gain_of(mine: Tensor, theirs: Tensor, measure: str, comparisons: int = 1) -> Estimate:
    """Like :func:`gain`, of values that are already paired.

    Args:
        mine: Values per picture. [N]
        theirs: Values to compare with. [N]
        measure: Name of the measure.
        comparisons: Number of comparisons whose confidence intervals should hold jointly.
    """
    pair = (theirs, mine) if lower_is_better(measure) else (mine, theirs)
    return paired_gain(*pair, comparisons)


def paired(mine: Scores, theirs: Scores, measure: str) -> tuple[Tensor, Tensor]:
    """The values of a measure in both, for the pictures that it applies to. [N] each

    Raises:
        ValueError: One lacks the measure, or was measured on other pictures.
    """
    if lacking := [s for s in (mine, theirs) if measure not in s]:
        names = ", ".join(sorted(lacking[0])) or "nothing"
        raise ValueError(f"{measure} was not measured here, only {names}")
    a, b = mine[measure], theirs[measure]
    if not lower_is_better(measure) and a.shape == b.shape:
        if bool((a.isnan() != b.isnan()).any()):
            raise ValueError(
                f"{measure} was measured on other captions; run both evaluations again"
            )
        a, b = a[~a.isnan()], b[~b.isnan()]
    return a, b


def shared_measures(mine: Scores, theirs: Scores) -> list[str]:
    """The measures in both that apply to at least two pictures."""
    return [
        name for name, values in mine.items() if name in theirs and int((~values.isnan()).sum()) > 1
    ]
