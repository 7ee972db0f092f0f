"""EDM's preconditioning around a raw network, and the training loss (eDiff-I section 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ediffi_core.conditioning import Conditioning
from ediffi_core.unet import UNet, UNetConfig


class Coefficients(NamedTuple):
    """``D(x; σ) = c_skip x + c_out F(c_in x, c_noise)`` and the loss weight λ(σ)."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor
    weight: Tensor


def coefficients(sigma: Tensor, sigma_data: float) -> Coefficients:
    """With ``σ* = sqrt(σ² + σ_data²)``; same shape and precision as σ. λ c_out² = 1 for every σ."""
    star = torch.sqrt(sigma**2 + sigma_data**2)
    return Coefficients(
        c_skip=(sigma_data / star) ** 2,
        c_out=sigma * sigma_data / star,
        c_in=1 / star,
        c_noise=torch.log(sigma) / 4,
        weight=(star / (sigma * sigma_data)) ** 2,
    )


class Denoiser(nn.Module):
    """``(x, σ, conditioning) → x̂``: the network with its preconditioning, float32 outside."""

    def __init__(self, net: nn.Module, sigma_data: float = 0.5, *, residual: bool = False) -> None:
        """
        Args:
            sigma_data: standard deviation of what is predicted.
            residual: predict the difference from the enlarged small picture instead of the picture.
        """
        super().__init__()
        self.net = net
        self.sigma_data = sigma_data
        self.residual = residual

    @classmethod
    def of(cls, config: UNetConfig, sigma_data: float) -> Denoiser:
        """With a fresh network, as a configuration describes it."""
        return cls(UNet(config), sigma_data, residual=config.residual)

    def forward(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """x [N, C, H, W]; sigma [N] or one value for all, float64 if it comes from a grid.

        σ may be on the CPU wherever x is. One value for all stays there: kernels take it as an
        argument, so nothing is copied to the device and nothing waited for.
        """
        if sigma.ndim or sigma.device.type != "cpu":
            sigma = sigma.to(x.device, non_blocking=True)
        c = Coefficients(*(v.to(x.dtype) for v in coefficients(sigma, self.sigma_data)))
        c_skip, c_out, c_in = (v.view(-1, 1, 1, 1) if v.ndim else v for v in c[:3])
        known = cond.enlarged(x) if self.residual else None
        if known is not None:
            x = x - known
        raw = self.net(c_in * x, x.new_zeros(len(x)) + c.c_noise, cond)
        found = c_skip * x + c_out * raw.to(x.dtype)
        return found if known is None else known + found


def denoising_loss(
    denoiser: nn.Module,
    sigma_data: float,
    x: Tensor,
    sigma: Tensor,
    eps: Tensor,
    cond: Conditioning,
) -> Tensor:
    """``λ(σ) ‖D(x + σε; e, σ) − x‖²`` averaged over pixels. σ [N] on any device → [N] float32"""
    noisy = x + sigma.to(x, non_blocking=True)[:, None, None, None] * eps
    error = (denoiser(noisy, sigma, cond) - x).square().mean(dim=(1, 2, 3))
    weight: Tensor = coefficients(sigma, sigma_data).weight
    return error * weight.to(error, non_blocking=True)
