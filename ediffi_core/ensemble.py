"""An ensemble of expert denoisers, routed by σ: exactly one expert works at any noise level."""

from __future__ import annotations

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


class Ensemble(nn.Module):
    """Acts as one denoiser. Refuses experts that overlap or leave a gap (ValueError)."""

    def __init__(self, experts: list[Expert], noise: NoiseDistribution) -> None:
        super().__init__()
        check_cover({e.name: e.interval for e in experts})
        self.noise = noise
        if len({e.name for e in experts}) != len(experts):
            raise ValueError(f"expert names repeat: {', '.join(e.name for e in experts)}")
        self.experts = sorted(experts, key=lambda e: e.interval.q_lo)
        self.modules_by_name = nn.ModuleDict({e.name: e.denoiser for e in self.experts})
        # Upper edges of all but the highest expert, in σ: half-open, so σ on an edge goes up.
        self.edges = [e.interval.bounds(noise)[1] for e in self.experts[:-1]]

    def expert_at(self, sigma: float) -> Expert:
        return self.experts[sum(sigma >= edge for edge in self.edges)]

    def forward(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """x [N, C, H, W]; sigma one value for all, or [N] (each row goes to its own expert)."""
        if sigma.ndim == 0:
            out: Tensor = self.expert_at(float(sigma)).denoiser(x, sigma, cond)
            return out
        edges = torch.tensor(self.edges, dtype=torch.float64, device=sigma.device)
        rows = torch.bucketize(sigma.double(), edges, right=True)
        result = torch.empty_like(x)
        for i in rows.unique().tolist():
            mine = rows == i
            result[mine] = self.experts[i].denoiser(x[mine], sigma[mine], cond[mine])
        return result
