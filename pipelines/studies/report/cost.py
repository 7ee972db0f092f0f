"""What each side of a comparison cost: images, parameters and seconds, counted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from statistics import mean
from typing import Any

from pipelines.spec.study import SEED, Comparison, Study
from pipelines.studies.report.shown import at_text, comparison_at, comparison_label, places
from pipelines.studies.results import Group, Results

COUNTS = {
    "images": "training images",
    "parameters": "parameters stored",
    "active_parameters": "parameters in use",
    "training_seconds": "training seconds",
}
"""Attribute of a group → its name in the table."""

EXACT = ("images", "active_parameters")
"""Counts that a fair comparison has equal."""


def compared(study: Study) -> Iterator[tuple[str, Comparison, dict[str, str]]]:
    """Every comparison of the study's claims and figures once, with its axes' values in words."""
    seen: set[str] = set()
    for comparison, at in (*_of_claims(study), *_of_figures(study)):
        sides = [
            (model.group, sorted(study.place(comparison.at, at, model.at).items()))
            for model in (comparison.mine, comparison.theirs)
        ]
        if repr(sides) not in seen:
            seen.add(repr(sides))
            yield at_text({**comparison.at, **at}), comparison, at


def _of_claims(study: Study) -> Iterator[tuple[Comparison, dict[str, str]]]:
    for claim in study.claims.values():
        for at in study.combinations(claim.each):
            yield claim, at


def _of_figures(study: Study) -> Iterator[tuple[Comparison, dict[str, str]]]:
    for figure in study.figures.values():
        along = [""] if figure.axis is None else study.values(figure.axis)
        for _, at in places(study, figure):
            for comparison, value in itertools.product(figure.comparisons, along):
                along_x = {figure.axis: value} if figure.axis else {}
                yield comparison, {**comparison_at(figure, comparison, at), **along_x}


def table(results: Results) -> list[dict[str, Any]]:
    """A row for each comparison with what both of its sides cost, as means over their seeds."""
    rows = []
    for where, comparison, at in compared(results.study):
        sides = [
            results.models(model, results.study.place(comparison.at, at))
            for model in (comparison.mine, comparison.theirs)
        ]
        if not all(sides):
            continue
        label = model_pair(comparison)
        row: dict[str, Any] = {"comparison": label, "at": where, "seeds": len(sides[0])}
        for attribute, name in COUNTS.items():
            row[name] = [_count(groups, attribute) for groups in sides]
        row["equal"] = all(_equal(row[COUNTS[attribute]]) for attribute in EXACT)
        rows.append(row)
    return rows


def model_pair(comparison: Comparison) -> str:
    """The two models of a comparison, by name: labels and claims' sentences say other things."""
    return comparison_label(Comparison(mine=comparison.mine, theirs=comparison.theirs))


def _count(groups: Mapping[str, Group], attribute: str) -> int | float:
    value = mean(float(getattr(group, attribute)) for group in groups.values())
    return round(value, 1) if value < 10 else round(value)


def _equal(pair: list[int | float]) -> bool:
    """Whether two counts differ by less than half a percent."""
    return abs(pair[0] - pair[1]) <= 0.005 * max(map(abs, pair))


def experiments(results: Results) -> list[dict[str, Any]]:
    """A row for each question: how many of its cells are finished."""
    study = results.study
    done = {tuple(sorted(cell.at.items())) for cell in results.cells}
    rows = []
    for name, experiment in study.experiments.items():
        cells = [tuple(sorted(at.items())) for at in study.cells_of(experiment)]
        rows.append(
            {
                "experiment": name,
                "asks": experiment.asks,
                "cells": len(cells),
                "finished": sum(cell in done for cell in cells),
                "seeds": len(study.axes_of(experiment)[SEED]),
            }
        )
    return rows
