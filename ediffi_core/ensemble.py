"""An ensemble of expert denoisers, routed by σ: exactly one expert works at any noise level."""

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
    """A denoiser and the slice of p(σ) that it answers for."""

    name: str
    interval: Interval
    denoiser: Denoiser


@dataclass(frozen=True)
class Routed:
    """Word of one evaluation, for whoever watches."""

    expert: str
    sigma: float
    seconds: float
    """As the caller waited: on a GPU the time to hand the work over, unless it is synchronised."""


class Ensemble(nn.Module):
    """Acts as one denoiser. Refuses experts that overlap or leave a gap (ValueError)."""

    def __init__(
        self,
        experts: list[Expert],
        noise: NoiseDistribution,
        *,
        on_route: Callable[[Routed], None] | None = None,
    ) -> None:
        super().__init__()
        check_cover({e.name: e.interval for e in experts})
        self.noise = noise
        if len({e.name for e in experts}) != len(experts):
            raise ValueError(f"expert names repeat: {', '.join(e.name for e in experts)}")
        self.experts = sorted(experts, key=lambda e: e.interval.q_lo)
        self.modules_by_name = nn.ModuleDict({e.name: e.denoiser for e in self.experts})
        # Upper edges of all but the highest expert, in σ: half-open, so σ on an edge goes up.
        self.edges = [e.interval.bounds(noise)[1] for e in self.experts[:-1]]
        self.on_route = on_route

    def expert_at(self, sigma: float) -> Expert:
        return self.experts[sum(sigma >= edge for edge in self.edges)]

    def forward(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """x [N, C, H, W]; sigma one value for all, or [N] (each row goes to its own expert).

        Best with σ on the CPU, wherever x is: to choose the expert, one on a GPU is read back.
        """
        sigma = sigma.cpu()
        if sigma.ndim == 0:
            return self.ask(self.expert_at(float(sigma)), x, sigma, cond)
        edges = torch.tensor(self.edges, dtype=torch.float64)
        rows = torch.bucketize(sigma.double(), edges, right=True)
        result = torch.empty_like(x)
        for i in rows.unique().tolist():
            mine = (rows == i).nonzero()[:, 0]
            here = mine.to(x.device, non_blocking=True)
            result[here] = self.ask(self.experts[i], x[here], sigma[mine], cond[here])
        return result

    def ask(self, expert: Expert, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """One expert's answer; a place for others to decide where its weights are."""
        start = time.perf_counter()
        out: Tensor = self.resident(expert)(x, sigma, cond)
        if self.on_route:
            seconds = time.perf_counter() - start
            self.on_route(Routed(expert.name, float(sigma.max()), seconds))
        return out

    def resident(self, expert: Expert) -> Denoiser:
        """The expert's network where it can work: all of them are."""
        return expert.denoiser
