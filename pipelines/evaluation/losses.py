"""Denoising losses of an evaluation: one per draw, stored with how they were measured.

Two models are compared on the same pictures, σ and ε, over all noise levels and within each
expert's interval, of either model. Losses that were measured differently are not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ediffi_core.conditioning import Conditioning
from ediffi_core.ensemble import Ensemble
from ediffi_core.metrics import by_picture, validation_losses
from ediffi_core.noise import Interval, NoiseDistribution
from ediffi_core.strata import Strata
from pipelines.dag.differences import difference
from pipelines.evaluation.scores import finite, from_json, read_required_json, to_json
from pipelines.store.artifacts import Store

FILE = "losses.json"

OVER_NOISE = "val_loss"
"""Name of the mean loss over p(σ)."""

OVER_STEPS = f"{OVER_NOISE}/sampler"
"""Name of the mean loss over the sampler's steps."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Denoising losses of one ensemble."""

    how: Mapping[str, Any]
    """All settings that determine the draws, the loss weight and the degradation; see
    :func:`measure`."""

    experts: Mapping[str, tuple[float, float]]
    """Expert of the measured ensemble → its interval (σ_lo, σ_hi), lowest noise first."""

    picture: Tensor
    """Picture number of each draw, in the order of the strata. [N] int64"""

    sigma: Tensor
    """Noise level of each draw. [N] float64"""

    loss: Tensor
    """Loss of each draw; NaN where it is not finite. [N] float64"""

    @property
    def expert_bounds(self) -> dict[str, tuple[float, float]]:
        """Expert → (σ_lo, σ_hi) of the strata, which have equally many draws each."""
        noise = NoiseDistribution(**self.how["cut"])
        intervals = {name: Interval(*q) for name, q in self.how["experts"].items()}
        rising = sorted(intervals, key=lambda name: intervals[name].q_lo)
        return {name: intervals[name].bounds(noise) for name in rising}

    def over(self, measure: str) -> Tensor:
        """One value a picture, whose mean is that over p(σ) or over the sampler's steps."""
        strata = strata_of(self.how)
        distribution = strata.noise if measure == OVER_NOISE else strata.sampler
        return by_picture(self.loss, self.picture, strata.weights(self.sigma, distribution))

    def within(self, bounds: tuple[float, float]) -> Tensor:
        """One value a picture, whose mean is that of the draws in an interval of σ."""
        mine = self.inside(bounds)
        return by_picture(self.loss[mine], self.picture[mine])

    def inside(self, bounds: tuple[float, float]) -> Tensor:
        """Which draws are in an interval of σ. [N] bool"""
        return (self.sigma >= bounds[0]) & (self.sigma < bounds[1])

    def scores(self) -> dict[str, Tensor]:
        """Measure → one value per picture: over p(σ), over the sampler's steps, in each
        interval."""
        found = {measure: self.over(measure) for measure in (OVER_NOISE, OVER_STEPS)}
        for name, bounds in self.expert_bounds.items():
            if self.inside(bounds).any():
                found[f"{OVER_NOISE}/{name}"] = self.within(bounds)
        return found

    def write(self, store: Store, folder: str, file: str = FILE) -> None:
        """Write them as JSON into the evaluation's folder."""
        columns = {"picture": self.picture, "sigma": self.sigma, "loss": self.loss}
        rows = {name: to_json(column) for name, column in columns.items()}
        experts = {name: [low, finite(high)] for name, (low, high) in self.experts.items()}
        store.write_json(f"{folder}/{file}", {"how": self.how, "experts": experts, **rows})


def read(store: Store, folder: str, file: str = FILE) -> Losses:
    """Read an evaluation's losses; ValueError if the file is missing."""
    found = read_required_json(store, folder, file)
    inf = float("inf")
    return Losses(
        how=found["how"],
        experts={
            n: (low, inf if high is None else high) for n, (low, high) in found["experts"].items()
        },
        picture=torch.tensor(found["picture"]),
        sigma=from_json(found["sigma"]),
        loss=from_json(found["loss"]),
    )


def strata_of(how: Mapping[str, Any]) -> Strata:
    """The strata of the draws; ``how`` as for :func:`measure`."""
    expert_bounds = NoiseDistribution(**how["cut"])
    intervals = sorted((Interval(*q) for q in how["experts"].values()), key=lambda i: i.q_lo)
    edges = (0.0, *(i.bounds(expert_bounds)[1] for i in intervals))
    return Strata(edges=edges, noise=NoiseDistribution(**how["noise"]))


def measure(
    ensemble: Ensemble,
    batches: Callable[[Tensor], tuple[Tensor, Conditioning]],
    how: Mapping[str, Any],
    *,
    pictures: int,
    batch: int,
    part: slice = slice(None),
) -> Losses:
    """Measure an ensemble's denoising losses, or a part of them.

    Args:
        ensemble: The ensemble.
        batches: ``index [B] → (x, conditioning)`` on the ensemble's device, for picture
            ``index % pictures``.
        how: Settings of the measurement: ``draws`` per interval; ``experts``, name → interval
            [q_lo, q_hi) in quantiles of the p(σ) ``cut``; the p(σ) ``noise`` and ``sigma_data``
            that weigh the loss; ``seed``; and all else that determines the pictures.
        pictures: Number of validation pictures.
        batch: Draws per forward pass.
        part: Which of the draws to measure. :func:`merged` puts parts together; they equal the
            whole if each begins at a multiple of ``batch``.
    """
    index, sigma = strata_of(how).draw(how["draws"], pictures=pictures, seed=how["seed"])
    index, sigma = index[part], sigma[part]
    loss = validation_losses(
        ensemble,
        how["sigma_data"],
        batches,
        index=index,
        sigma=sigma,
        batch=batch,
        seed=how["seed"],
    ).double()
    edges = pairwise([0.0, *ensemble.edges, float("inf")])
    return Losses(
        how=how,
        experts={e.name: edge for e, edge in zip(ensemble.experts, edges, strict=True)},
        picture=index % pictures,
        sigma=sigma,
        loss=torch.where(loss.isfinite(), loss, torch.nan),
    )


def merged(parts: Sequence[Losses]) -> Losses:
    """The losses of one ensemble from those of its parts, in their order."""
    return replace(
        parts[0],
        picture=torch.cat([part.picture for part in parts]),
        sigma=torch.cat([part.sigma for part in parts]),
        loss=torch.cat([part.loss for part in parts]),
    )


def number_of_draws(how: Mapping[str, Any], pictures: int) -> int:
    """The number of draws in all intervals; arguments as for :func:`measure`."""
    index, _ = strata_of(how).draw(how["draws"], pictures=pictures, seed=how["seed"])
    return len(index)


def mismatch(mine: Losses, theirs: Losses) -> str:
    """What differs in how two were measured, as text; empty if they can be compared."""
    changed = difference(theirs.how, mine.how)
    if changed:
        return "; ".join(changed[:3])
    same = torch.equal(mine.picture, theirs.picture) and torch.allclose(
        mine.sigma, theirs.sigma, rtol=1e-9, atol=0
    )
    return "" if same else "other draws"


def intervals(mine: Losses, theirs: Losses) -> Iterator[tuple[str, tuple[float, float]]]:
    """The intervals of both ensembles' experts that have draws, without duplicates.

    Yields:
        The expert's name, prefixed by ``champion`` for the second, and (σ_lo, σ_hi).
    """
    seen: set[tuple[float, float]] = set()
    for prefix, losses in (("", mine), ("champion ", theirs)):
        for name, bounds in losses.experts.items():
            if bounds not in seen and bool(mine.inside(bounds).any()):
                seen.add(bounds)
                yield f"{prefix}{name}", bounds
