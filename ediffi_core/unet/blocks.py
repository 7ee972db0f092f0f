"""Blocks of all networks: noise embedding, norms, resampling and the residual block."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function_unary

from ediffi_core.unet.config import Norm, groups_of

Resample = Literal["none", "down", "up"]


def zero_init(module: nn.Module) -> nn.Module:
    """Set all parameters to zero, so that a residual branch starts as the identity."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


class PixelNorm(nn.Module):
    """RMS norm over the channels of each pixel, with a learned scale.

    Unlike group norm it does not mix pixels, so the network has a finite receptive field, and crops
    and tiles give the same result as the whole image.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] with pixels of unit mean square, times a weight per channel."""
        scale = torch.rsqrt(x.float().square().mean(dim=1, keepdim=True) + 1e-6)
        return x * scale.to(x.dtype) * self.weight.to(x.dtype)[:, None, None]


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """A pixel norm or a group norm."""
    if kind == "pixel":
        return PixelNorm(channels)
    return nn.GroupNorm(groups_of(channels), channels)


class NoiseEmbedding(nn.Module):
    """Fourier features of ``c_noise = ln(σ)/4``, then a two-layer perceptron. [N] → [N, out_dim]

    c_noise spans about 3 units, so angular frequencies from 1 to 100 resolve everything from half a
    period over that span to less than a sampling step (our default; the paper names none).
    """

    freqs: Tensor

    def __init__(self, channels: int, out_dim: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.logspace(0, 2, channels // 2), persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(channels, out_dim), nn.SiLU(), nn.Linear(out_dim, out_dim)
        )

    def forward(self, c_noise: Tensor) -> Tensor:
        """c_noise [N] → embeddings [N, out_dim]."""
        angle = c_noise[:, None] * self.freqs
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=1))


def up_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Nearest-neighbour upsampling by 2 and a 3×3 convolution, fused.

    Each output pixel depends on 2×2 input pixels, so 16 products replace 36: the kernel, summed
    over repeated pixels, becomes a 4×4 transposed convolution of stride 2.

    Args:
        x: [N, c_in, H, W].
        weight: of the convolution, [c_out, c_in, 3, 3].

    Returns:
        [N, c_out, 2H, 2W].
    """
    if has_torch_function_unary(x):  # a mode may compute it otherwise, as ediffi_core.invariant
        out: Tensor = handle_torch_function(up_conv, (x,), x, weight, bias)
        return out
    w = weight.transpose(0, 1).flip(2, 3)
    pads = ((0, 1, 0, 1), (1, 0, 0, 1), (0, 1, 1, 0), (1, 0, 1, 0))
    kernel = torch.stack([F.pad(w, p) for p in pads]).sum(dim=0)
    return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)


class UpConv(nn.Conv2d):
    """The layer of :func:`up_conv`."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, c_in, H, W] → [N, c_out, 2H, 2W]."""
        return up_conv(x, self.weight, self.bias)


class ResBlock(nn.Module):
    """ADM's residual block (arXiv:2105.05233): scale-shift norm, optional resampling inside."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        emb_dim: int,
        resample: Resample = "none",
        norm: Norm = "group",
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = make_norm(norm, c_in)
        self.conv1 = (
            UpConv(c_in, c_out) if resample == "up" else nn.Conv2d(c_in, c_out, 3, padding=1)
        )
        self.scale_shift = nn.Linear(emb_dim, 2 * c_out)
        self.norm2 = make_norm(norm, c_out)
        self.conv2 = zero_init(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x [N, c_in, H, W] and the noise embedding [N, D] → [N, c_out, H, W].

        H and W are halved or doubled if the block resamples.
        """
        h = F.silu(self.norm1(x))
        if self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        elif self.resample == "up":
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        h = self.conv1(h)
        scale, shift = self.scale_shift(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h
