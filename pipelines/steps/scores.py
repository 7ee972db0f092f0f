"""What was measured of single pictures and draws: kept beside an evaluation, and compared pairwise.

Two models that are measured on the same captions, seeds, σ and ε are compared picture by picture,
so the pictures' own differences, far larger than the models', cancel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

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
    rows = {
        name: [None if math.isnan(v) else v for v in values.tolist()]
        for name, values in scores.items()
    }
    store.write_json(f"{folder}/{FILE}", rows)


def read(store: Store, folder: str) -> Scores:
    """ValueError if they are lost."""
    found = store.read_json(f"{folder}/{FILE}")
    if found is None:
        raise ValueError(f"{store.full(folder)} has lost its {FILE}; remove it, and run again")
    return {
        name: torch.tensor([math.nan if v is None else v for v in values], dtype=torch.float64)
        for name, values in found.items()
    }


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
    a, b = paired(mine, theirs, measure)
    return paired_gain(b, a) if lower_is_better(measure) else paired_gain(a, b)


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


def comparable(mine: Scores, theirs: Scores) -> list[str]:
    """The measures that both have, of at least two pictures that were asked of it."""
    return [
        name for name, values in mine.items() if name in theirs and int((~values.isnan()).sum()) > 1
    ]
