"""Results of a small study, made up from gains that a test chooses."""

import numpy as np

from pipelines.spec.study import Study
from pipelines.studies.results import Cell, Group, Results


def group(scores):
    """A group with these scores; the rest does not matter here."""
    return Group(
        metrics={name: float(np.mean(values)) for name, values in scores.items()},
        scores={name: np.asarray(values, dtype=np.float64) for name, values in scores.items()},
        images=1,
        parameters=1,
        active_parameters=1,
        training_seconds=1.0,
        intervals={},
        pictures="",
    )


def study(claims, seeds=5):
    """A study of two data sets with an ensemble and a single model in every cell."""
    return Study.model_validate(
        {
            "study": "made",
            "title": "Made up",
            "base": "base.yaml",
            "axes": {
                "seed": list(range(seeds)),
                "data": {"emoji": {}, "fashion": {}},
                "split": {"two": {}, "three": {}},
            },
            "experiments": {"all": {"asks": "?", "cells": {"seed": "all", "data": "all"}}},
            "claims": claims,
        }
    )


def claim(**changes):
    """That experts beat the single model of their cell on validation loss."""
    return {
        "says": "Experts beat one model on {data}.",
        "mine": {"group": "ensemble"},
        "theirs": {"group": "single"},
        **changes,
    }


def results(claims, gains, seeds=5, pictures=200, absent=(), others=None):
    """Results in which experts gain what ``gains[data]`` gives: [S, N], or a number for all.

    ``others`` are further groups, name → gain [S, N].
    """
    random = np.random.default_rng(0)
    cells = []
    for data in ("emoji", "fashion"):
        theirs = 0.3 + 0.05 * random.random(pictures)
        gain = gains.get(data, 0.0)
        if np.isscalar(gain):
            gain = gain + 1e-3 * random.standard_normal((seeds, pictures))
        for seed in range(seeds):
            if (data, seed) in absent:
                continue
            cells.append(
                Cell(
                    name=f"made-{data}-two-s{seed}",
                    at={"seed": str(seed), "data": data, "split": "two"},
                    groups={
                        "ensemble": group({"val_loss": theirs - gain[seed]}),
                        "single": group({"val_loss": theirs}),
                        **{
                            name: group({"val_loss": theirs - values[seed]})
                            for name, values in (others or {}).items()
                        },
                    },
                )
            )
    return Results(study=study(claims, seeds), cells=tuple(cells))


def crossed(random, seeds, pictures, of_seeds, of_pictures, noise=0.3):
    """Gains with no mean: crossed random effects of seeds and pictures. [S, N]

    ``of_seeds``, ``of_pictures`` and ``noise`` are the standard errors that each contributes to the
    mean.
    """
    normal = random.standard_normal
    return (
        of_seeds * np.sqrt(seeds) * normal((seeds, 1))
        + of_pictures * np.sqrt(pictures) * normal((1, pictures))
        + noise * np.sqrt(seeds * pictures) * normal((seeds, pictures))
    )
