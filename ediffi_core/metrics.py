"""Metrics of images and of denoisers, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ediffi_core import draws
from ediffi_core.conditioning import Conditioning
from ediffi_core.features import (
    Features,
    as_features,
    kernel_diagonal,
    kernel_sums,
    polynomial,
)
from ediffi_core.noise import NoiseDistribution
from ediffi_core.precond import denoising_loss


@dataclass
class Moments:
    """Count, mean and scatter matrix of feature vectors; sums of moments merge sets of vectors."""

    count: int
    mean: Tensor  # [D]
    scatter: Tensor  # [D, D], sum of outer products of centred vectors

    @staticmethod
    def of(features: Tensor | Features) -> Moments:
        """Moments of features [N, D], in float64 on the CPU; read block by block."""
        found = Moments(0, torch.zeros(0), torch.zeros(0))
        for x in as_features(features).blocks():
            mean = x.mean(dim=0)
            centred = x - mean
            block = Moments(len(x), mean.cpu(), (centred.T @ centred).cpu())
            found = found + block if found.count else block
        return found

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        delta = other.mean - self.mean
        scatter = self.scatter + other.scatter
        scatter = scatter + torch.outer(delta, delta) * (self.count * other.count / count)
        return Moments(count, self.mean + delta * (other.count / count), scatter)

    def __sub__(self, part: Moments) -> Moments:
        """Moments of the vectors that are not in ``part``, which must hold fewer."""
        count = self.count - part.count
        mean = self.mean + (self.mean - part.mean) * (part.count / count)
        delta = part.mean - mean
        scatter = self.scatter - part.scatter
        scatter = scatter - torch.outer(delta, delta) * (part.count * count / self.count)
        return Moments(count, mean, scatter)

    def to(self, device: torch.device | str) -> Moments:
        """The same moments on a device."""
        return Moments(self.count, self.mean.to(device), self.scatter.to(device))

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance [D, D]; ValueError for fewer than 2 vectors."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 pictures, got {self.count}")
        return self.scatter / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """``‖μ_a − μ_b‖² + tr(C_a + C_b − 2 (C_a C_b)^½)``: the distance of FID (arXiv:1706.08500)."""
    root_a = _sqrt(a.covariance)
    cross = torch.linalg.eigvalsh(root_a @ b.covariance @ root_a).clamp(min=0).sqrt().sum()
    trace = a.covariance.trace() + b.covariance.trace()
    return float((a.mean - b.mean).square().sum() + trace - 2 * cross)


def _sqrt(symmetric: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(symmetric)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


MIN_KERNEL_PICTURES = 3
"""Fewest pictures for a kernel distance."""


def kernel_distance(made: Tensor | Features, real: Tensor | Features) -> Tensor:
    """Contribution of each image to the kernel distance (KID, arXiv:1801.01401) of two sets.

    This is the unbiased estimate of MMD² with the kernel ``(x·y/D + 1)³``. Generated image i has
    the caption of real image i, so pairs (i, i) are left out. The values are jackknife
    pseudo-values: their mean is the distance, which may be negative, :meth:`Estimate.of` gives its
    confidence interval, and :func:`paired_gain` compares two models that were measured against the
    same real images.

    Features are scaled so that the real ones have a mean square of 1 (our default; KID does not
    scale Inception's features, but CLIP's have unit length, which would flatten the kernel).

    Args:
        made, real: features [N, D] of equally many generated and real images, at least 3. As
            :class:`Features` they are read block by block.

    Returns:
        [N] float64.
    """
    x, y = as_features(made), as_features(real)
    shapes = [[len(one), one.dim] for one in (x, y)]
    if shapes[0] != shapes[1] or len(x) < 3:
        raise ValueError(
            f"a kernel distance needs equally many pictures of both kinds, at least 3, got "
            f"{shapes[0]} and {shapes[1]}"
        )
    square = sum(float(block.square().sum()) for block in y.blocks()) / (len(y) * y.dim)
    kernel = polynomial(y.dim, max(math.sqrt(square), 1e-12))
    cross = kernel_sums(x, y, kernel)
    rows = kernel_sums(x, x, kernel).rows + kernel_sums(y, y, kernel).rows
    rows -= cross.rows + cross.columns
    rows -= kernel_diagonal(x, x, kernel) + kernel_diagonal(y, y, kernel)
    rows += 2 * kernel_diagonal(x, y, kernel)
    n, total = len(x), rows.sum()
    without = (total - 2 * rows) / ((n - 1) * (n - 2))
    return n * total / (n * (n - 1)) - (n - 1) * without


def clip_scores(image: Tensor, text: Tensor) -> Tensor:
    """Cosine similarity of image and text embeddings [N, D] (CLIP score, unscaled). [N] float64"""
    return torch.nn.functional.cosine_similarity(image.double(), text.double())


def student_t(dof: int, comparisons: int = 1) -> float:
    """Half-width of a 95 % confidence interval in standard errors, by Student's t.

    Uses the Cornish–Fisher expansion: the error is within 1 % for one comparison, and for up to 20
    comparisons from 10 degrees of freedom.

    Args:
        dof: degrees of freedom; the result is infinite at 0.
        comparisons: number of intervals that should hold together (Bonferroni).
    """
    p = 1 - 0.025 / comparisons
    if dof < 2:
        return math.tan(math.pi * (p - 0.5)) if dof == 1 else math.inf
    z = float(torch.special.ndtri(torch.tensor(p, dtype=torch.float64)))
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / dof**n for n, term in enumerate(terms, 1))


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % confidence interval (Student's t; infinite for a single value)."""

    mean: float
    low: float
    high: float
    count: int

    @staticmethod
    def of(values: Tensor, comparisons: int = 1) -> Estimate:
        """Estimate of independent values [N]; ``comparisons`` as in :func:`student_t`."""
        x = values.double()
        mean = float(x.mean())
        n = len(x)
        error = student_t(n - 1, comparisons) * float(x.std()) / math.sqrt(n) if n > 1 else math.inf
        return Estimate(mean, mean - error, mean + error, n)


def paired_gain(parent: Tensor, child: Tensor, comparisons: int = 1) -> Estimate:
    """Mean of parent's minus child's losses [N] on the same draws; positive if the child is better.

    Pairing cancels the spread between draws, which is far larger than the gain.

    Args:
        comparisons: number of intervals that should hold together.

    Raises:
        ValueError: The numbers of losses differ.
    """
    if parent.shape != child.shape:
        raise ValueError(
            f"a paired test needs the same draws, got {len(parent)} and {len(child)} losses"
        )
    return Estimate.of(parent.double() - child.double(), comparisons)


def by_picture(values: Tensor, picture: Tensor, weight: Tensor | None = None) -> Tensor:
    """One value per image whose mean is the weighted mean of all draws. [N] → [images] float64

    Draws of the same image are not independent, but these values are: :meth:`Estimate.of` them is
    the weighted mean with a cluster-robust interval (by linearisation; the number of draws per
    image may vary). They are linear in ``values``, so :func:`paired_gain` applies to two models.

    Args:
        values: [N], one per draw.
        picture: [N], the image of each draw.
        weight: [N], non-negative; equal by default.
    """
    v = values.double()
    w = torch.ones_like(v) if weight is None else weight.double()
    mean = (w * v).sum() / w.sum()
    numbers, which = picture.unique(return_inverse=True)
    parts = torch.zeros(len(numbers), dtype=torch.float64)
    parts = parts.index_add(0, which, w * (v - mean))
    return mean + len(numbers) * parts / w.sum()


def by_noise_level(
    sigma: Tensor, losses: Tensor, noise: NoiseDistribution, bins: int
) -> dict[tuple[float, float], Estimate]:
    """(σ_lo, σ_hi) → mean loss, for each of ``bins`` equally likely parts of p(σ) with draws."""
    which = (noise.quantile(sigma) * bins).long().clamp(0, bins - 1)
    edges = noise.sigma(torch.linspace(0, 1, bins + 1)).tolist()
    return {
        (edges[b], edges[b + 1]): Estimate.of(losses[which == b]) for b in which.unique().tolist()
    }


@torch.no_grad()
def validation_losses(
    denoiser: nn.Module,
    sigma_data: float,
    batches: Callable[[Tensor], tuple[Tensor, Conditioning]],
    *,
    index: Tensor,
    sigma: Tensor,
    batch: int,
    seed: int,
) -> Tensor:
    """Denoising losses on fixed draws: the same images, σ and ε for every model.

    Args:
        sigma_data: of the weight λ(σ); use the same for all models to compare.
        batches: ``index [B] → (x, conditioning)``, a pure function.
        index: [N] indices of the draws. Several may map to one image; ε differs.
        sigma: [N] float64, noise level of each draw.
        batch: draws per forward pass.
        seed: seed of ε.

    Returns:
        Losses [N], on the CPU.
    """
    losses = []
    for part, level in zip(index.split(batch), sigma.split(batch), strict=True):
        x, cond = batches(part)
        eps = draws.normal(seed, "validation/eps", part.to(x.device), tuple(x.shape[1:]))
        losses.append(denoising_loss(denoiser, sigma_data, x, level, eps, cond))
    return torch.cat(losses).cpu()
