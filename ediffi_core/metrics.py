"""Measures of pictures and of denoisers, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ediffi_core import draws
from ediffi_core.conditioning import Conditioning
from ediffi_core.noise import NoiseDistribution
from ediffi_core.precond import denoising_loss


@dataclass
class Moments:
    """Count, mean and scatter of feature vectors, added up in any order and over any workers."""

    count: int
    mean: Tensor
    scatter: Tensor

    @staticmethod
    def of(features: Tensor) -> Moments:
        """features [N, D] → their moments in float64."""
        x = features.double()
        centred = x - x.mean(dim=0)
        return Moments(len(x), x.mean(dim=0), centred.T @ centred)

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        delta = other.mean - self.mean
        scatter = self.scatter + other.scatter
        scatter = scatter + torch.outer(delta, delta) * (self.count * other.count / count)
        return Moments(count, self.mean + delta * (other.count / count), scatter)

    @property
    def covariance(self) -> Tensor:
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 pictures, got {self.count}")
        return self.scatter / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """``‖μ_a − μ_b‖² + tr(C_a + C_b − 2 (C_a C_b)^½)``, the distance behind FID."""
    root_a = _sqrt(a.covariance)
    cross = torch.linalg.eigvalsh(root_a @ b.covariance @ root_a).clamp(min=0).sqrt().sum()
    trace = a.covariance.trace() + b.covariance.trace()
    return float((a.mean - b.mean).square().sum() + trace - 2 * cross)


def _sqrt(symmetric: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(symmetric)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def kernel_distance(made: Tensor, real: Tensor) -> Tensor:
    """Each picture's part in the kernel distance (KID, arXiv:1801.01401) of two sets. [N] float64

    The unbiased estimate of MMD² with the kernel ``(x·y/D + 1)³``, in its paired form: picture i
    is made for the caption of real picture i, so no pair (i, i) is compared. Its mean is the
    distance, which of two sets of the same distribution may be below 0; the parts are jackknife
    pseudo-values, so ``Estimate.of`` gives its interval, and of two models' parts, measured
    against the same real pictures, :func:`paired_gain` that of their difference.

    Features are divided by one number, so that the real ones' mean square is 1 (our default; KID
    takes those of Inception as they are, and CLIP's, of unit length, would make the kernel flat).

    Args:
        made, real: features [N, D] of as many pictures, at least 3.
    """
    if made.shape != real.shape or len(made) < 3:
        raise ValueError(
            f"a kernel distance compares as many pictures of either kind, at least 3, got "
            f"{list(made.shape)} and {list(real.shape)}"
        )
    x, y = made.double(), real.double()
    scale = y.square().mean().sqrt().clamp(min=1e-12)
    x, y = x / scale, y / scale

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    cross = kernel(x, y)
    h = (kernel(x, x) + kernel(y, y) - cross - cross.T).fill_diagonal_(0)
    n, rows, total = len(x), h.sum(dim=1), h.sum()
    without = (total - 2 * rows) / ((n - 1) * (n - 2))
    return n * total / (n * (n - 1)) - (n - 1) * without


def clip_scores(image: Tensor, text: Tensor) -> Tensor:
    """Cosine of each picture and its caption, both [N, D]. [N] float64"""
    return torch.nn.functional.cosine_similarity(image.double(), text.double())


def student_t(freedom: int, comparisons: int = 1) -> float:
    """Half the width of a 95 % interval in standard errors, by Student's t.

    Args:
        freedom: degrees of it; infinite at 0.
        comparisons: intervals that are to hold together (Bonferroni).

    Cornish-Fisher's expansion: within 1 % of 1 comparison, and of 20 from 10 degrees of freedom on.
    """
    p = 1 - 0.025 / comparisons
    if freedom < 2:
        return math.tan(math.pi * (p - 0.5)) if freedom == 1 else math.inf
    z = float(torch.special.ndtri(torch.tensor(p, dtype=torch.float64)))
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**n for n, term in enumerate(terms, 1))


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % confidence interval (Student's t; infinite for a single value)."""

    mean: float
    low: float
    high: float
    count: int

    @staticmethod
    def of(values: Tensor, comparisons: int = 1) -> Estimate:
        x = values.double()
        mean = float(x.mean())
        n = len(x)
        error = student_t(n - 1, comparisons) * float(x.std()) / math.sqrt(n) if n > 1 else math.inf
        return Estimate(mean, mean - error, mean + error, n)


def paired_gain(parent: Tensor, child: Tensor, comparisons: int = 1) -> Estimate:
    """How much lower the child's losses are, on the same draws: what a split has brought.

    Paired, so that the draws' own spread, far larger than the gain, cancels.

    Args:
        comparisons: whose intervals are to hold together.
    """
    if parent.shape != child.shape:
        raise ValueError(
            f"a paired test needs the same draws, got {len(parent)} and {len(child)} losses"
        )
    return Estimate.of(parent.double() - child.double(), comparisons)


def by_picture(values: Tensor, picture: Tensor, weight: Tensor | None = None) -> Tensor:
    """One value a picture, whose mean is the weighted mean of all. [N] → [pictures] float64

    Several draws of one picture are no independent ones. These values are: ``Estimate.of`` them is
    the weighted mean with an interval that is robust to what draws of a picture have in common
    (clusters, linearised; more draws of some pictures than of others are fine). They are linear in
    the values, so :func:`paired_gain` of two models' is that of their difference.

    Args:
        values: [N] of draws.
        picture: [N] the number of each draw's picture.
        weight: [N] not negative; equal by default.
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
    """(σ_lo, σ_hi) → the mean loss there, for the equal shares of p(σ) that have draws."""
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
    """Denoising losses on fixed draws: the same pictures, σ and ε for every model that is asked.

    Args:
        sigma_data: of the loss's weight λ(σ), the same for all that are compared.
        batches: ``index [B] → (x, conditioning)``, a function of the index alone.
        index: [N] numbers of the draws; more than the pictures there are is fine, ε differs.
        sigma: [N] float64, of each draw.
        batch: how many are asked at once.

    Returns:
        The loss [N] of each draw, on the CPU.
    """
    losses = []
    for part, level in zip(index.split(batch), sigma.split(batch), strict=True):
        x, cond = batches(part)
        eps = draws.normal(seed, "validation/eps", part.to(x.device), tuple(x.shape[1:]))
        losses.append(denoising_loss(denoiser, sigma_data, x, level, eps, cond))
    return torch.cat(losses).cpu()
