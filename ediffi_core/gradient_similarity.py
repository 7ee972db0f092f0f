"""How alike the denoising tasks of two noise levels are: the cosine of their losses' gradients.

Negative transfer between noise levels shows as a small or negative cosine (ANT, arXiv:2306.00354,
section 3). The mean gradient of few pictures is noisy, which draws every cosine towards 0; products
between two halves of the pictures have no such bias, since the halves' noise is independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Similarity of the mean gradients g_i of N tasks, in float64."""

    cosine: Tensor
    """``g_i·g_j / (‖g_i‖ ‖g_j‖)``, over all pictures. [N, N]"""

    norm: Tensor
    """``‖g_i‖``, over all pictures. [N]"""

    halves: Tensor
    """Cosine between one half's gradient of i and the other half's of j, the mean of both ways. Its
    diagonal says how far sampling noise draws cosines towards 0. [N, N]"""

    corrected: Tensor
    """``h_ij / √(h_ii h_jj)`` for products h between the halves: the cosine without the bias of
    sampling noise; NaN where h_ii or h_jj is not positive. It may lie beyond ±1. [N, N]"""


class Gradients:
    """Sums of products of gradients, parameter by parameter, from two halves of the pictures."""

    def __init__(self, tasks: int) -> None:
        self.products = torch.zeros(2, 2, tasks, tasks, dtype=torch.float64)
        """``products[a, b, i, j]``: of half a's gradient of task i and half b's of task j."""

    def add(self, first: Tensor, second: Tensor) -> None:
        """Add the gradients of some parameters.

        Args:
            first, second: mean gradient of each task over a half of the pictures. [N, P] each
        """
        both = [half.double().cpu() for half in (first, second)]
        for a, one in enumerate(both):
            for b, other in enumerate(both):
                self.products[a, b] += one @ other.T

    def similarity(self) -> Similarity:
        """Similarity of the gradients that were added, of halves of equal size."""
        whole = self.products.sum((0, 1)) / 4
        norm = whole.diagonal().clamp(min=0).sqrt()
        norms = [self.products[a, a].diagonal().clamp(min=0).sqrt() for a in (0, 1)]
        across = self.products[0, 1]
        one_way = across / (norms[0][:, None] * norms[1][None, :])
        mean = (across + across.T) / 2
        own = mean.diagonal()
        own = torch.where(own > 0, own, torch.nan).sqrt()
        return Similarity(
            cosine=whole / (norm[:, None] * norm[None, :]),
            norm=norm,
            halves=(one_way + one_way.T) / 2,
            corrected=mean / (own[:, None] * own[None, :]),
        )


def by_distance(similarity: Tensor) -> list[float]:
    """Mean of a similarity [N, N] over pairs of tasks 1, 2, …, N − 1 apart, without NaN.

    NaN where no pair of a distance has a value.
    """
    found: Sequence[Tensor] = [similarity.diagonal(d) for d in range(1, len(similarity))]
    return [float(row.nanmean()) for row in found]
