"""An ensemble of expert denoisers, routed by σ: one expert serves every noise level."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ediffi_core.conditioning import Conditioning
from ediffi_core.noise import Interval, NoiseDistribution
from ediffi_core.precond import Denoiser
from ediffi_core.tree import check_cover


@dataclass(frozen=True, eq=False)
class Expert:
    """A denoiser and the interval of p(σ) that it serves."""

    name: str
    interval: Interval
    denoiser: Denoiser


@dataclass(frozen=True)
class RouteEvent:
    """One evaluation of an expert, for ``on_route`` callbacks."""

    expert: str
    sigma: float
    """The highest noise level in the batch."""

    seconds: float
    """Host time. On a GPU this is the launch time, unless the callback synchronises."""


class Ensemble(nn.Module):
    """Experts that act as one denoiser.

    Raises:
        ValueError: The intervals overlap or leave a gap, or names repeat.
    """

    def __init__(
        self,
        experts: list[Expert],
        noise: NoiseDistribution,
        *,
        on_route: Callable[[RouteEvent], None] | None = None,
    ) -> None:
        super().__init__()
        check_cover({e.name: e.interval for e in experts})
        self.noise = noise
        if len({e.name for e in experts}) != len(experts):
            raise ValueError(f"expert names repeat: {', '.join(e.name for e in experts)}")
        self.experts = sorted(experts, key=lambda e: e.interval.q_lo)
        self.modules_by_name = nn.ModuleDict({e.name: e.denoiser for e in self.experts})
        # Upper σ edges of all but the highest expert; σ on an edge belongs to the upper expert.
        self.edges = [e.interval.bounds(noise)[1] for e in self.experts[:-1]]
        self.on_route = on_route

    def expert_at(self, sigma: float) -> Expert:
        """The expert that serves this noise level."""
        return self.experts[sum(sigma >= edge for edge in self.edges)]

    def forward(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Denoise every image with the expert of its noise level.

        Args:
            x: noisy images [N, C, H, W].
            sigma: a scalar for all, or [N]. Best on the CPU: routing reads a GPU's σ back.

        Returns:
            x̂ [N, C, H, W].
        """
        sigma = sigma.cpu()
        if sigma.ndim == 0:
            return self.run_expert(self.expert_at(float(sigma)), x, sigma, cond)
        edges = torch.tensor(self.edges, dtype=torch.float64)
        rows = torch.bucketize(sigma.double(), edges, right=True)
        result = torch.empty_like(x)
        for i in rows.unique().tolist():
            mine = (rows == i).nonzero()[:, 0]
            here = mine.to(x.device, non_blocking=True)
            result[here] = self.run_expert(self.experts[i], x[here], sigma[mine], cond[here])
        return result

    def run_expert(self, expert: Expert, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Evaluate one expert, and report it to ``on_route``."""
        start = time.perf_counter()
        out: Tensor = self.resident_denoiser(expert)(x, sigma, cond)
        if self.on_route:
            seconds = time.perf_counter() - start
            self.on_route(RouteEvent(expert.name, float(sigma.max()), seconds))
        return out

    def resident_denoiser(self, expert: Expert) -> Denoiser:
        """The expert's denoiser on the device; subclasses may load it first."""
        return expert.denoiser
