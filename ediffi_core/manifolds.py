"""How sets of features overlap: precision, recall, density, coverage, and copies of training data.

Distances are Euclidean, computed in tiles of two blocks, so that memory is bounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ediffi_core.distances import Measured
from ediffi_core.features import BLOCK, Features, check_comparable, check_enough
from ediffi_core.metrics import Estimate

PRECISION_K = 3
"""Neighbours of precision and recall; the paper's and torch-fidelity's."""

DENSITY_K = 5
"""Neighbours of density and coverage; the paper's."""

MEMORISED_RATIO = 1 / 3
"""A picture whose nearest training picture is nearer than this part of the distance to the
second-nearest counts as memorised (arXiv:2310.02664)."""


def precision_recall(
    made: Features, real: Features, *, k: int = PRECISION_K, block: int = BLOCK
) -> dict[str, Measured]:
    """Improved precision and recall (arXiv:1904.06991), as torch-fidelity computes them.

    ``precision``: the share of generated pictures inside the ball of some real picture, whose
    radius is the distance to its k-th nearest real picture. ``recall``: the same with the sets
    exchanged. Intervals are Wilson's, over the pictures whose share it is, with the balls given.

    Args:
        k: neighbours.
        block: features in a block.

    Raises:
        ValueError: There are no more than ``k`` pictures of a kind.
    """
    check_enough("precision_recall", k + 1, made, real)
    check_comparable(made, real)
    inside_real = inside_balls(made, real, radii(real, k, block=block), block=block)
    inside_made = inside_balls(real, made, radii(made, k, block=block), block=block)
    return {
        "precision": share(inside_real > 0, made),
        "recall": share(inside_made > 0, made),
    }


def density_coverage(
    made: Features, real: Features, *, k: int = DENSITY_K, block: int = BLOCK
) -> dict[str, Measured]:
    """Density and coverage (arXiv:2002.09797).

    ``density``: how many real pictures' balls hold a generated picture, divided by k; its
    expectation is 1 for equal distributions, and it may be above. ``coverage``: the share of real
    pictures whose ball holds a generated one. Balls are those of :func:`precision_recall`, without
    their surface. Intervals are over pictures, with the balls given.
    """
    check_enough("density_coverage", k + 1, made, real)
    check_comparable(made, real)
    size = radii(real, k, block=block)
    balls = inside_balls(made, real, size, block=block, surface=False)
    density = Estimate.of(balls.double() / k)
    nearest = nearest_distances(real, made, 1, block=block)[0][:, 0]
    found = Measured(
        value=density.mean,
        low=density.low,
        high=density.high,
        count=len(made),
        features=made.name,
        sha256=made.sha256,
    )
    return {"density": found, "coverage": share(nearest < size, made)}


def radii(features: Features, k: int, *, block: int = BLOCK) -> Tensor:
    """Distance of each vector to its k-th nearest other one. [N] float64"""
    return nearest_distances(features, features, k + 1, block=block)[0][:, k]


def inside_balls(
    points: Features, centres: Features, radius: Tensor, *, block: int = BLOCK, surface: bool = True
) -> Tensor:
    """In how many balls each point lies.

    Args:
        radius: [M], of the ball around each centre.
        surface: whether a ball includes its surface.

    Returns:
        [N] int64.
    """
    found = torch.zeros(len(points), dtype=torch.int64)
    for i, x in enumerate(points.blocks(block)):
        here = found[i * block : i * block + len(x)]
        for j, y in enumerate(centres.blocks(block)):
            size = radius[j * block : j * block + len(y)].to(x.device)
            apart = torch.cdist(x, y)
            here += (apart <= size if surface else apart < size).sum(dim=1).cpu()
    return found


def nearest_distances(
    a: Features, b: Features, k: int, *, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """The k nearest vectors of ``b`` for each vector of ``a``, nearest first.

    Args:
        k: at most the number of vectors in ``b``.

    Returns:
        Distances [N, k] float64 and indices in ``b`` [N, k].
    """
    distances, indices = [], []
    for x in a.blocks(block):
        best = x.new_full((len(x), 0), math.inf)
        at = torch.zeros(len(x), 0, dtype=torch.int64, device=x.device)
        for j, y in enumerate(b.blocks(block)):
            number = torch.arange(j * block, j * block + len(y), device=x.device)
            together = torch.cat([best, torch.cdist(x, y)], dim=1)
            numbers = torch.cat([at, number.expand(len(x), -1)], dim=1)
            best, order = together.topk(min(k, together.shape[1]), dim=1, largest=False)
            at = numbers.gather(1, order)
        distances.append(best.cpu())
        indices.append(at.cpu())
    return torch.cat(distances), torch.cat(indices)


@dataclass(frozen=True)
class Neighbours:
    """The nearest training picture of each generated one."""

    index: Tensor
    """[N] int64, of the training picture."""

    distance: Tensor
    """[N] float64, to it."""

    ratio: Tensor
    """[N] float64: that distance divided by the distance to the second-nearest training picture.
    Near 0 for a copy, near 1 for a picture that resembles no single one. Copies within the training
    data hide a memorised picture from it, so remove duplicates there (``filters``)."""

    authentic: Tensor
    """[N] bool: whether the picture is farther from its nearest training picture than that one is
    from its own nearest (arXiv:2102.08921)."""

    def measured(self, made: Features) -> dict[str, Measured]:
        """``memorised``: the share with a ratio below :data:`MEMORISED_RATIO`; ``authenticity``:
        the share that is authentic. With Wilson's intervals."""
        return {
            "memorised": share(self.ratio < MEMORISED_RATIO, made),
            "authenticity": share(self.authentic, made),
        }


def neighbours(made: Features, training: Features, *, block: int = BLOCK) -> Neighbours:
    """Find the nearest training picture of each generated one, in the space of the features.

    Raises:
        ValueError: There are fewer than 2 training pictures.
    """
    check_enough("neighbours", 1, made)
    check_enough("neighbours", 2, training)
    check_comparable(made, training)
    _, at = nearest_distances(made, training, 2, block=block)
    apart, at = _exact(made, training, at, block=block)
    found, which = at[:, 0].unique(return_inverse=True)
    own = _selected_radii(training, found, block=block)
    ratio = apart[:, 0] / apart[:, 1].clamp(min=torch.finfo(torch.float64).tiny)
    ratio[apart[:, 1] == 0] = 1.0  # two training pictures that are the same
    return Neighbours(at[:, 0], apart[:, 0], ratio, apart[:, 0] > own[which])


def _exact(a: Features, b: Features, at: Tensor, *, block: int) -> tuple[Tensor, Tensor]:
    """Distances from differences of vectors, nearest first.

    Those from products of vectors, which are much faster, are about 1e-8 for equal vectors.

    Args:
        at: [N, k], of the nearest ones.

    Returns:
        Distances [N, k] float64 and the indices.
    """
    distances = []
    for x, where in zip(a.blocks(block), at.split(block), strict=True):
        near = b.rows(where.flatten()).view(*where.shape, -1).to(x.device)
        distances.append((x[:, None] - near).square().sum(dim=2).sqrt().cpu())
    found, order = torch.cat(distances).sort(dim=1, stable=True)
    return found, at.gather(1, order)


def _selected_radii(features: Features, index: Tensor, *, block: int) -> Tensor:
    """:func:`radii` with k = 1, only of some vectors. [n] float64"""
    found = []
    for part in index.split(block):
        found.append(nearest_distances(Features.of(features.rows(part)), features, 2)[0][:, 1])
    return torch.cat(found)


def share(hits: Tensor, made: Features) -> Measured:
    """The share of pictures that are hits [N] bool, with Wilson's score interval (1927)."""
    n, p, z = len(hits), float(hits.double().mean()), 1.959963984540054
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    width = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return Measured(
        value=p,
        low=max(0.0, middle - width),
        high=min(1.0, middle + width),
        count=len(made),
        features=made.name,
        sha256=made.sha256,
    )
