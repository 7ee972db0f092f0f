"""Stratified noise levels for evaluation: every expert gets the same number of draws.

Config D's ``E9_511`` has 0.2 % of p(σ) but 9 of 25 sampling steps, so draws from p(σ) hardly meet
it. Here each interval gets the same number of draws, half from p(σ) and half from the density of
the sampler's steps. Weights then give the mean over either distribution (multiple importance
sampling with the balance heuristic, Veach and Guibas 1995).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ediffi_core import draws
from ediffi_core.noise import NoiseDistribution, SamplerDensity

Distribution = NoiseDistribution | SamplerDensity


@dataclass(frozen=True, kw_only=True)
class Strata:
    """Intervals of σ, and the two distributions to draw from in each.

    A distribution without mass in an interval is left out there; an interval without mass in either
    has no draws.
    """

    edges: tuple[float, ...]
    """Increasing edges of the intervals, from 0 to ∞."""

    noise: NoiseDistribution = field(default_factory=NoiseDistribution)
    sampler: SamplerDensity = field(default_factory=SamplerDensity)

    def __post_init__(self) -> None:
        if (
            self.edges[0] != 0
            or self.edges[-1] != math.inf
            or sorted(set(self.edges)) != [*self.edges]
        ):
            raise ValueError(f"edges must increase from 0 to inf, got {self.edges}")

    def draw(self, count: int, *, pictures: int, seed: int) -> tuple[Tensor, Tensor]:
        """Draw noise levels in all intervals, lowest noise first.

        Args:
            count: draws per interval.
            pictures: size of the data set. Within an interval, every image is used equally often,
                to within one.

        Returns:
            index [N] int64, all different; the image of a draw is ``index % pictures``.
            σ [N] float64, each within its interval; evenly spread over each round of images.
        """
        stride = -(-count // pictures) * pictures
        index, sigma = [], []
        for i in range(len(self.edges) - 1):
            mine = torch.arange(count) + i * stride
            u = draws.rotated(seed, "validation/sigma", mine, pictures)
            parts = self._parts(i)
            if not parts:
                continue
            which = (u * len(parts)).long()
            u = u * len(parts) - which
            found = torch.empty(count, dtype=torch.float64)
            for k, (distribution, lo, share) in enumerate(parts):
                q = (lo + share * u[which == k]).clamp(2.0**-54, 1 - 2.0**-53)
                found[which == k] = distribution.sigma(q)
            low, high = self.edges[i], self.edges[i + 1]
            index.append(mine)
            sigma.append(found.clamp(low, math.nextafter(high, 0)))
        return torch.cat(index), torch.cat(sigma)

    def weights(self, sigma: Tensor, over: Distribution) -> Tensor:
        """Weights of the draws in a mean over a distribution. [N] → [N] float64, summing to 1"""
        edges = torch.tensor(self.edges[1:-1], dtype=torch.float64)
        which = torch.bucketize(sigma, edges, right=True)
        drawn = torch.zeros_like(sigma)
        for i in which.unique().tolist():
            mine, parts = which == i, self._parts(i)
            for distribution, _, share in parts:
                drawn[mine] += distribution.density(sigma[mine]) / (share * len(parts))
        weight = over.density(sigma) / drawn
        return weight / weight.sum()

    def _parts(self, i: int) -> list[tuple[Distribution, float, float]]:
        """(distribution, q_lo, share) of each distribution with mass in interval i."""
        found: list[tuple[Distribution, float, float]] = []
        ends = torch.tensor(self.edges[i : i + 2], dtype=torch.float64)
        for distribution in (self.noise, self.sampler):
            lo, hi = distribution.quantile(ends).tolist()
            if hi > lo:
                found.append((distribution, lo, hi - lo))
        return found
