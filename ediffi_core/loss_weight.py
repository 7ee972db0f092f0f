"""Weights of the training loss over noise levels, as factors on EDM's λ(σ).

Specs name the weights, so this module is imported without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from ediffi_core.noise import NoiseDistribution

if TYPE_CHECKING:
    from torch import Tensor

LossWeight = Literal["edm", "min_snr", "p2"]
MIN_SNR_GAMMA = 5.0
P2_K, P2_GAMMA = 1.0, 1.0

QUADRATURE = 4096
"""Midpoints, evenly spread over the quantiles of p(σ), that the mean factor is computed from."""


def x0_weight(name: LossWeight, sigma: Tensor, sigma_data: float) -> Tensor:
    """The weight of ``‖D(x + σε; σ) − x‖²``, up to a constant; with ``SNR = 1/σ²``.

    - ``edm``: ``λ(σ) = (σ² + σ_data²) / (σ σ_data)²`` (Karras et al., arXiv:2206.00364, table 1).
    - ``min_snr``: ``min(SNR, 5)``, Min-SNR-γ for a network that predicts x (Hang et al.,
      arXiv:2303.09556, section 3.4).
    - ``p2``: ``SNR / (1 + SNR)``. P2 weighs the error of ε by ``1 / (k + SNR)^γ`` with k = γ = 1
      (Choi et al., arXiv:2204.00227, equation 8), and that error is SNR times the error of x.

    Args:
        sigma: noise levels of any shape; the result has its shape and dtype.

    Raises:
        ValueError: There is no such weight.
    """
    from ediffi_core.precond import coefficients

    snr = sigma**-2
    if name == "edm":
        return coefficients(sigma, sigma_data).weight
    if name == "min_snr":
        return snr.clamp(max=MIN_SNR_GAMMA)
    if name == "p2":
        return snr / (P2_K + snr) ** P2_GAMMA
    known = ", ".join(get_args(LossWeight))
    raise ValueError(f"there is no loss weight {name!r}; write one of {known}")


@dataclass(frozen=True, kw_only=True)
class LossFactor:
    """What EDM's weighted loss is multiplied by in training: the wanted weight over λ(σ).

    It is scaled so that its mean over p(σ) is 1, whatever part of p(σ) an expert trains on.
    """

    name: LossWeight
    noise: NoiseDistribution
    sigma_data: float
    scale: float

    @classmethod
    def of(cls, name: LossWeight, noise: NoiseDistribution, sigma_data: float) -> LossFactor:
        """The factor of a weight for a stage's p(σ) and σ_data; ValueError for an unknown name."""
        import torch

        q = (torch.arange(QUADRATURE, dtype=torch.float64) + 0.5) / QUADRATURE
        mean = float(_ratio(name, noise.sigma(q), sigma_data).mean())
        return cls(name=name, noise=noise, sigma_data=sigma_data, scale=1 / mean)

    def __call__(self, sigma: Tensor) -> Tensor:
        """The factor at noise levels. [N] → [N], in σ's dtype"""
        return self.scale * _ratio(self.name, sigma, self.sigma_data)


def _ratio(name: LossWeight, sigma: Tensor, sigma_data: float) -> Tensor:
    return x0_weight(name, sigma, sigma_data) / x0_weight("edm", sigma, sigma_data)
