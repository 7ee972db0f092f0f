"""EDM's preconditioning of a raw network and its training loss (arXiv:2206.00364, table 1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ediffi_core.conditioning import Conditioning
from ediffi_core.unet import UNet, UNetConfig


class Coefficients(NamedTuple):
    """Of ``D(x; σ) = c_skip x + c_out F(c_in x, c_noise)`` (EDM, equation 7), and weight λ(σ)."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor
    weight: Tensor


def coefficients(sigma: Tensor, sigma_data: float) -> Coefficients:
    """EDM, table 1, with ``σ* = sqrt(σ² + σ_data²)``; ``λ c_out² = 1`` for every σ.

    Args:
        sigma: noise levels of any shape; the results have its shape and dtype.
    """
    star = torch.sqrt(sigma**2 + sigma_data**2)
    return Coefficients(
        c_skip=(sigma_data / star) ** 2,
        c_out=sigma * sigma_data / star,
        c_in=1 / star,
        c_noise=torch.log(sigma) / 4,
        weight=(star / (sigma * sigma_data)) ** 2,
    )


class Denoiser(nn.Module):
    """A preconditioned network: ``(x, σ, conditioning) → x̂``, float32 in and out."""

    def __init__(self, net: nn.Module, sigma_data: float = 0.5, *, residual: bool = False) -> None:
        """
        Args:
            net: raw network ``F(x, c_noise, conditioning)``.
            sigma_data: standard deviation of the predicted quantity.
            residual: predict the difference from the upsampled low-resolution image instead of the
                image itself.
        """
        super().__init__()
        self.net = net
        self.sigma_data = sigma_data
        self.residual = residual

    @classmethod
    def of(cls, config: UNetConfig, sigma_data: float) -> Denoiser:
        """A denoiser with a freshly initialised network."""
        return cls(UNet(config), sigma_data, residual=config.residual)

    def forward(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Denoise x.

        Args:
            x: noisy images [N, C, H, W].
            sigma: noise levels [N], or a scalar for all; on the CPU or the device of x. A scalar
                on the CPU is passed to kernels as a number, so nothing is copied or awaited.

        Returns:
            x̂ [N, C, H, W].
        """
        if sigma.ndim or sigma.device.type != "cpu":
            sigma = sigma.to(x.device, non_blocking=True)
        c = Coefficients(*(v.to(x.dtype) for v in coefficients(sigma, self.sigma_data)))
        c_skip, c_out, c_in = (v.view(-1, 1, 1, 1) if v.ndim else v for v in c[:3])
        low_res = cond.upsampled_low_res(x) if self.residual else None
        if low_res is not None:
            x = x - low_res
        raw = self.net(c_in * x, x.new_zeros(len(x)) + c.c_noise, cond)
        out = c_skip * x + c_out * raw.to(x.dtype)
        return out if low_res is None else low_res + out


def denoising_loss(
    denoiser: nn.Module,
    sigma_data: float,
    x: Tensor,
    sigma: Tensor,
    eps: Tensor,
    cond: Conditioning,
) -> Tensor:
    """``λ(σ) ‖D(x + σε; e, σ) − x‖²`` averaged over pixels (eDiff-I section 3; EDM section 5).

    Args:
        denoiser: a :class:`Denoiser`, an ensemble, or either wrapped by DDP.
        sigma_data: of the weight λ(σ).
        x: clean images [N, C, H, W].
        sigma: [N], on any device.
        eps: standard normal noise of x's shape.

    Returns:
        The loss of each image, [N] float32.
    """
    noisy = x + sigma.to(x, non_blocking=True)[:, None, None, None] * eps
    error = (denoiser(noisy, sigma, cond) - x).square().mean(dim=(1, 2, 3))
    weight: Tensor = coefficients(sigma, sigma_data).weight
    return error * weight.to(error, non_blocking=True)
