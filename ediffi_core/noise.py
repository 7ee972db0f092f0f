"""The training noise p(σ), its quantiles and intervals, and the sampling grid. All in float64.

Plans and reports need only numbers: they import this module without torch. Methods that take
tensors import torch when they are called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from ediffi_core.normal import normal_quantile

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class NoiseDistribution:
    """``ln σ ~ N(P_mean, P_std²)`` (eDiff-I section 3, the values of EDM)."""

    P_mean: float = -1.2
    P_std: float = 1.2

    def __post_init__(self) -> None:
        if not self.P_std > 0:
            raise ValueError(f"P_std must be positive, got {self.P_std}; EDM's value is 1.2")

    def sigma(self, q: Tensor) -> Tensor:
        """σ at quantile q: ``exp(P_mean + P_std Φ⁻¹(q))``, float64; 0 at q = 0 and ∞ at q = 1."""
        import torch

        return torch.exp(self.P_mean + self.P_std * torch.special.ndtri(q.double()))

    def sigma_at(self, q: float) -> float:
        """:meth:`sigma` of one quantile, without torch; the two agree to the last few bits."""
        return math.exp(self.P_mean + self.P_std * normal_quantile(q))

    def quantile(self, sigma: Tensor) -> Tensor:
        """The share of p(σ) below σ, float64; the inverse of :meth:`sigma`."""
        import torch

        return torch.special.ndtr((torch.log(sigma.double()) - self.P_mean) / self.P_std)

    def density(self, sigma: Tensor) -> Tensor:
        """p per unit of ln σ, float64."""
        import torch

        z = (torch.log(sigma.double()) - self.P_mean) / self.P_std
        return torch.exp(-0.5 * z**2) / (self.P_std * math.sqrt(2 * math.pi))


@dataclass(frozen=True, kw_only=True)
class SamplerDensity:
    """Where a sampler on EDM's grid spends its steps: σ^(1/ρ) is uniform (EDM's equation 5).

    The expert ``E9_511`` of eDiff-I's Config D covers 0.2 % of p(σ), but a third of the steps.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    @property
    def _ends(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def sigma(self, q: Tensor) -> Tensor:
        """σ with a share q of the steps below it, float64."""
        lo, hi = self._ends
        return (lo + (hi - lo) * q.double()) ** self.rho

    def quantile(self, sigma: Tensor) -> Tensor:
        """The share of the steps below σ, float64; 0 and 1 beyond the grid."""
        lo, hi = self._ends
        return ((sigma.double() ** (1 / self.rho) - lo) / (hi - lo)).clamp(0, 1)

    def quantile_at(self, sigma: float) -> float:
        """:meth:`quantile` of one σ (0 and ∞ too), without torch."""
        lo, hi = self._ends
        return min(max((sigma ** (1 / self.rho) - lo) / (hi - lo), 0.0), 1.0)

    def density(self, sigma: Tensor) -> Tensor:
        """The density per unit of ln σ, float64; 0 beyond the grid."""
        import torch

        lo, hi = self._ends
        root = sigma.double() ** (1 / self.rho)
        # The roots of the two ends are rounded too.
        inside = (root > lo * (1 - 1e-12)) & (root < hi * (1 + 1e-12))
        return torch.where(inside, root / (self.rho * (hi - lo)), 0.0)


@dataclass(frozen=True)
class Interval:
    """A slice ``[q_lo, q_hi)`` of p(σ), by quantile: what one expert is trained on.

    Quantiles, not σ, because the tree cuts p(σ) into equal shares and dyadic fractions are exact.
    """

    q_lo: float
    q_hi: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.q_lo < self.q_hi <= 1.0:
            raise ValueError(
                f"an interval needs 0 <= q_lo < q_hi <= 1, got [{self.q_lo}, {self.q_hi}); "
                "write quantiles of p(σ), lowest noise first"
            )

    def holds(self, other: Interval) -> bool:
        """Whether the other interval lies within this one."""
        return self.q_lo <= other.q_lo and other.q_hi <= self.q_hi

    def bounds(self, noise: NoiseDistribution) -> tuple[float, float]:
        """``(σ_lo, σ_hi)``: the expert works on σ_lo <= σ < σ_hi; 0 and inf at the ends."""
        return noise.sigma_at(self.q_lo), noise.sigma_at(self.q_hi)

    def draw(self, u: Tensor, noise: NoiseDistribution) -> Tensor:
        """Map ``u ~ U[0, 1)`` to ``σ ~ p(σ | this interval)``.

        Args:
            u: Uniform draws, of any shape.

        Returns:
            σ in float64, of u's shape (float32 would lose the highest noise levels).
        """
        q = self.q_lo + (self.q_hi - self.q_lo) * u.double()
        # A u next to 1 rounds up to q_hi. Clamping keeps σ finite, above 0 and in this interval.
        lo, hi = self.bounds(noise)
        return noise.sigma(q.clamp(2.0**-54, 1 - 2.0**-53)).clamp(lo, math.nextafter(hi, 0))


EVERYTHING = Interval(0.0, 1.0)


@dataclass(frozen=True)
class Mixture:
    """A density over σ in pieces: σ is drawn from a piece by its weight, and within it as p(σ).

    What an expert trains on when that is not p(σ) in one interval: an interval with a share of
    draws from outside it, or the density that several experts trained on together.
    """

    pieces: tuple[Interval, ...]
    """Rising and without overlap; gaps between them are never drawn."""

    weights: tuple[float, ...]
    """Probability of each piece."""

    def __post_init__(self) -> None:
        if not self.pieces or len(self.pieces) != len(self.weights):
            raise ValueError(
                "a density needs at least one piece, and a weight for each: got "
                f"{len(self.pieces)} pieces and {len(self.weights)} weights"
            )
        for below, above in pairwise(self.pieces):
            if above.q_lo < below.q_hi:
                raise ValueError(
                    f"the pieces of a density must rise and not overlap, but "
                    f"[{above.q_lo}, {above.q_hi}) follows [{below.q_lo}, {below.q_hi})"
                )
        for weight in self.weights:
            if not 0 < weight <= 1:
                raise ValueError(
                    f"the weight of a piece must be above 0 and at most 1, got {weight}; leave out "
                    "what is never drawn"
                )
        if abs(math.fsum(self.weights) - 1) > 1e-9:
            raise ValueError(f"the weights of a density sum to {math.fsum(self.weights)}, not to 1")

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]]) -> Mixture:
        """The density that a node's setting ``density`` describes: ``[[q_lo, q_hi, weight], …]``.

        Raises:
            ValueError: The pieces do not rise or overlap, or the weights are no probabilities.
        """
        if any(len(row) != 3 for row in rows):
            raise ValueError(f"a piece of a density is [q_lo, q_hi, weight], got {list(rows)}")
        return cls(tuple(Interval(lo, hi) for lo, hi, _ in rows), tuple(w for _, _, w in rows))

    @classmethod
    def around(cls, interval: Interval, outside: float) -> Mixture:
        """An interval, with a share of the draws from all of p(σ) outside it; weights to 12 digits.

        Raises:
            ValueError: ``outside`` is not between 0 and 1, or the interval leaves nothing outside.
        """
        left = interval.q_lo + (1 - interval.q_hi)
        if left == 0:
            raise ValueError("an interval of all noise levels leaves nothing outside to draw from")
        pieces = [(interval, round(1 - outside, 12))]
        if interval.q_lo > 0:
            below = Interval(0.0, interval.q_lo)
            pieces.insert(0, (below, round(outside * interval.q_lo / left, 12)))
        if interval.q_hi < 1:
            above = Interval(interval.q_hi, 1.0)
            pieces.append((above, round(outside * (1 - interval.q_hi) / left, 12)))
        return cls(tuple(piece for piece, _ in pieces), tuple(weight for _, weight in pieces))

    @property
    def rows(self) -> list[list[float]]:
        """The density as node settings hold it: ``[[q_lo, q_hi, weight], …]``."""
        return [[p.q_lo, p.q_hi, w] for p, w in zip(self.pieces, self.weights, strict=True)]

    def draw(self, u: Tensor, noise: NoiseDistribution) -> Tensor:
        """Map ``u ~ U[0, 1)`` to σ of this density, rising with u; see :meth:`Interval.draw`.

        So draws that are evenly spread over [0, 1) are evenly spread over the density too. With one
        piece, σ is bit for bit that of :meth:`Interval.draw`.

        Returns:
            σ in float64, of u's shape.
        """
        import torch

        u = u.double()
        edges = [0.0, *accumulate(self.weights)]
        which = torch.bucketize(u, u.new_tensor(edges[1:-1]), right=True)
        sigma = torch.empty_like(u)
        for at, (piece, weight) in enumerate(zip(self.pieces, self.weights, strict=True)):
            mine = which == at
            # The sum of the weights is rounded, so the last piece may reach beyond 1.
            inside = ((u[mine] - edges[at]) / weight).clamp(0, 1 - 2.0**-53)
            sigma[mine] = piece.draw(inside, noise)
        return sigma


def sigma_text(low: float, high: float) -> str:
    """An interval of σ as text: ``0.3012 ≤ σ < 1.2``; "all σ" from 0 to infinity."""
    if low == 0 and high == math.inf:
        return "all σ"
    if low == 0:
        return f"σ < {high:.4g}"
    return f"σ ≥ {low:.4g}" if high == math.inf else f"{low:.4g} ≤ σ < {high:.4g}"


def edm_grid(
    num_steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """EDM's noise levels (equation 5): ``num_steps`` falling values, then 0.

    Returns:
        [num_steps + 1] float64.

    Raises:
        ValueError: Fewer than 1 step, or not 0 < sigma_min < sigma_max.
    """
    import torch

    lo, hi = _edm_ends(num_steps, sigma_min, sigma_max, rho)
    ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    sigmas = (hi + ramp * (lo - hi)) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def edm_levels(
    num_steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> list[float]:
    """The values of :func:`edm_grid` without the last 0, up to rounding; needs no torch."""
    lo, hi = _edm_ends(num_steps, sigma_min, sigma_max, rho)
    last = max(num_steps - 1, 1)
    return [(hi + at / last * (lo - hi)) ** rho for at in range(num_steps)]


def _edm_ends(
    num_steps: int, sigma_min: float, sigma_max: float, rho: float
) -> tuple[float, float]:
    """The lowest and the highest level of a grid, to the power of 1/ρ; ValueError if it is none."""
    if num_steps < 1:
        raise ValueError(f"a sampling grid needs at least 1 step, got {num_steps}")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"need 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    return sigma_min ** (1 / rho), sigma_max ** (1 / rho)
