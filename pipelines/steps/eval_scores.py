"""What was measured of single pictures and draws: kept beside an evaluation, and compared pairwise.

Two models that are measured on the same captions, seeds, σ and ε are compared picture by picture,
so the pictures' own differences, far larger than the models', cancel.
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
"""Of all that is measured; of the others more is better."""


def lower_is_better(measure: str) -> bool:
    """Also of its parts, such as ``val_loss/E9_511``."""
    return measure.partition("/")[0] in LOWER_IS_BETTER


Scores = dict[str, Tensor]
"""Measure → [N] float64, NaN for a picture of which nothing of the kind was asked."""


def write(store: Store, folder: str, scores: Mapping[str, Tensor]) -> None:
    store.write_json(f"{folder}/{FILE}", {name: to_json(v) for name, v in scores.items()})


def read(store: Store, folder: str) -> Scores:
    """ValueError if they are lost."""
    return {
        name: from_json(values) for name, values in read_required_json(store, folder, FILE).items()
    }


def read_required_json(store: Store, folder: str, file: str) -> dict[str, Any]:
    """What an evaluation left in a JSON file beside it; ValueError if it is lost."""
    found = store.read_json(f"{folder}/{file}")
    if found is None:
        raise ValueError(f"{store.full(folder)} has lost its {file}; remove it, and run again")
    return dict(found)


def to_json(values: Tensor) -> list[float | None]:
    """As JSON keeps a column, which has no NaN."""
    return [None if math.isnan(v) else v for v in values.tolist()]


def from_json(values: Sequence[float | None]) -> Tensor:
    """The inverse of :func:`to_json`. [N] float64"""
    return torch.tensor([math.nan if v is None else v for v in values], dtype=torch.float64)


def summary(scores: Mapping[str, Tensor], prefix: str = "") -> dict[str, float]:
    """Each measure's mean, as ``…_ci95`` half the width of its 95 % confidence interval, and as
    ``…_pictures`` how many pictures it is of."""
    found = {}
    for name, values in scores.items():
        asked = values if lower_is_better(name) else values[~values.isnan()]
        if not len(asked):
            continue
        estimate = Estimate.of(asked)
        found[f"{prefix}{name}"] = estimate.mean
        found[f"{prefix}{name}_pictures"] = len(asked)
        if len(asked) > 1:
            found[f"{prefix}{name}_ci95"] = (estimate.high - estimate.low) / 2
    return found


def gain(mine: Scores, theirs: Scores, measure: str) -> Estimate:
    """How much better mine is than theirs; above 0 is better, whatever the measure."""
    return gain_of(*paired(mine, theirs, measure), measure)


def gain_of(mine: Tensor, theirs: Tensor, measure: str, comparisons: int = 1) -> Estimate:
    """The same of values that are paired already.

    Args:
        comparisons: whose intervals are to hold together.
    """
    pair = (theirs, mine) if lower_is_better(measure) else (mine, theirs)
    return paired_gain(*pair, comparisons)


def paired(mine: Scores, theirs: Scores, measure: str) -> tuple[Tensor, Tensor]:
    """What both have of the pictures that were asked of a measure.

    Raises:
        ValueError: One of them was not measured so, or on other pictures.
    """
    if lacking := [s for s in (mine, theirs) if measure not in s]:
        there = ", ".join(sorted(lacking[0])) or "nothing"
        raise ValueError(f"{measure} was not measured here; there are {there}")
    a, b = mine[measure], theirs[measure]
    if not lower_is_better(measure) and a.shape == b.shape:
        if bool((a.isnan() != b.isnan()).any()):
            raise ValueError(f"{measure} was measured on other captions; run both again")
        a, b = a[~a.isnan()], b[~b.isnan()]
    return a, b


def shared_measures(mine: Scores, theirs: Scores) -> list[str]:
    """The measures that both have, of at least two pictures that were asked of it."""
    return [
        name for name, values in mine.items() if name in theirs and int((~values.isnan()).sum()) > 1
    ]
