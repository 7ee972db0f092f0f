"""Degradation of the low-resolution input in the training of super-resolution.

Blur, resizing, Gaussian and Poisson noise and JPEG make the network robust to artefacts of the base
(eDiff-I section 4; the choice of corruptions and their strengths are our defaults).

Everything runs in torch on a batch. Strengths are a function of (seed, purpose, image index).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ediffi_core import draws


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """Maximum strengths; every image draws its own strengths between none and these."""

    probability: float = 0.5
    """Probability of each corruption, independent of the others."""

    blur_sigma: float = 1.0
    """Standard deviation of the Gaussian blur, in pixels of the low-resolution image."""

    shrink: float = 2.0
    """Largest factor by which sides are reduced before they are enlarged back."""

    gaussian_noise: float = 0.1
    """Standard deviation, for pixels in [-1, 1]."""

    poisson_noise: float = 0.1
    """Standard deviation at white; proportional to the square root of brightness."""

    jpeg_quality: int = 40
    """Lowest quality; the highest is 95."""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must lie in [0, 1], got {self.probability}")
        if min(self.blur_sigma, self.gaussian_noise, self.poisson_noise) < 0:
            raise ValueError("blur_sigma, gaussian_noise and poisson_noise must not be negative")
        if self.shrink < 1 or not 1 <= self.jpeg_quality <= 95:
            raise ValueError(
                f"need shrink >= 1 and jpeg_quality from 1 to 95, "
                f"got {self.shrink} and {self.jpeg_quality}"
            )

    def scaled(self, strength: float) -> Degradation:
        """Weaker by a factor ``strength`` in [0, 1]; 0 degrades nothing."""
        return replace(
            self,
            probability=self.probability
            if strength
            else 0.0,  # even JPEG of the highest quality degrades
            blur_sigma=self.blur_sigma * strength,
            shrink=1 + (self.shrink - 1) * strength,
            gaussian_noise=self.gaussian_noise * strength,
            poisson_noise=self.poisson_noise * strength,
            jpeg_quality=round(95 - (95 - self.jpeg_quality) * strength),
        )


def degrade(x: Tensor, index: Tensor, settings: Degradation, *, seed: int, purpose: str) -> Tensor:
    """Degrade images.

    Args:
        x: [N, 3, h, w] in [-1, 1].
        index: [N] indices of the images in the stream; on the CPU, nothing waits for x's device.
        purpose: name of the random stream.

    Returns:
        [N, 3, h, w] in [-1, 1].
    """
    u = draws.uniform(seed, f"{purpose}/strength", index, 10)
    shrunk = (1 + (settings.shrink - 1) * u[:, 6].to(x.dtype)).tolist()
    index, u = (t.to(x.device, non_blocking=True) for t in (index, u))
    chosen, strength = u[:, :5] < settings.probability, u[:, 5:].to(x.dtype)

    def where(k: int, degraded: Tensor, clean: Tensor) -> Tensor:
        return torch.where(chosen[:, k, None, None, None], degraded, clean)

    radius = round(3 * settings.blur_sigma)
    x = where(0, blur(x, settings.blur_sigma * strength[:, 0], radius), x)
    x = where(1, shrink_and_enlarge(x, shrunk), x)
    shape = tuple(x.shape[1:])
    noise = draws.normal(seed, f"{purpose}/gaussian", index, shape).to(x.dtype)
    x = where(2, x + settings.gaussian_noise * strength[:, 2, None, None, None] * noise, x)
    noise = draws.normal(seed, f"{purpose}/poisson", index, shape).to(x.dtype)
    # A Poisson count of many photons is normal with a variance equal to its mean.
    root = ((x.clamp(-1, 1) + 1) / 2).sqrt()
    x = where(3, x + settings.poisson_noise * strength[:, 3, None, None, None] * root * noise, x)
    quality = 95 - (95 - settings.jpeg_quality) * strength[:, 4]
    return where(4, jpeg(x.clamp(-1, 1), quality), x).clamp(-1, 1)


def blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur of each image by its own sigma [N] in pixels; edges are replicated.

    All kernels have the same radius, so an image does not depend on its batch.
    """
    at = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (at / sigma.clamp(min=1e-3)[:, None]).square())
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    n, c, h, w = x.shape
    weight = kernel.repeat_interleave(c, dim=0)[:, None]  # [N C, 1, taps]
    flat = F.pad(x, (radius, radius, radius, radius), mode="replicate").reshape(
        1, n * c, h + 2 * radius, -1
    )
    flat = F.conv2d(flat, weight[:, :, :, None], groups=n * c)
    return F.conv2d(flat, weight[:, :, None], groups=n * c).view(n, c, h, w)


def shrink_and_enlarge(x: Tensor, factors: Sequence[float]) -> Tensor:
    """Resize each image to 1/factor of its sides and back, bilinearly."""
    side = x.shape[2:]
    out = []
    for picture, f in zip(x, factors, strict=True):
        small = [max(1, round(s / f)) for s in side]
        down = F.interpolate(picture[None], size=small, mode="bilinear", antialias=True)
        out.append(F.interpolate(down, size=side, mode="bilinear"))
    return torch.cat(out)


# Quantisation tables of ITU-T T.81, annex K, which libjpeg scales by quality.
_LUMA = torch.tensor([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
], dtype=torch.float32).view(8, 8)  # fmt: skip
_CHROMA = torch.tensor([
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99,
    *[99] * 32,
], dtype=torch.float32).view(8, 8)  # fmt: skip
_TO_YCC = torch.tensor(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)


def jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """JPEG compression with 4:2:0 chroma of [N, 3, h, w] in [-1, 1], at quality [N] in 1 to 100."""
    height, width = x.shape[2:]
    x = F.pad(x, (0, -width % 16, 0, -height % 16), mode="replicate")
    to_ycc = _TO_YCC.to(x.dtype)
    to_rgb = torch.linalg.inv(to_ycc).to(
        x.device, non_blocking=True
    )  # on the CPU, because inv() checks its result
    to_ycc = to_ycc.to(x.device, non_blocking=True)
    ycc = torch.einsum("ij,njhw->nihw", to_ycc, (x + 1) * 127.5).round()
    luma, chroma = ycc[:, :1] - 128, F.avg_pool2d(ycc[:, 1:], 2)
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality).floor()
    luma = _quantize_dct(luma, _LUMA, scale)[:, :, :height, :width] + 128
    chroma = _quantize_dct(chroma, _CHROMA, scale)[:, :, : (height + 1) // 2, : (width + 1) // 2]
    # libjpeg's "fancy upsampling" (3/4 of the nearer sample, 1/4 of the next) is bilinear.
    chroma = F.interpolate(chroma, scale_factor=2.0, mode="bilinear")[:, :, :height, :width]
    rgb = torch.einsum("ij,njhw->nihw", to_rgb, torch.cat([luma, chroma], 1))
    return rgb.round().clamp(0, 255) / 127.5 - 1


def _quantize_dct(x: Tensor, table: Tensor, scale: Tensor) -> Tensor:
    """Quantise the DCT coefficients of 8×8 blocks by the scaled table."""
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // 8, 8, w // 8, 8).transpose(3, 4)
    k = torch.arange(8, dtype=x.dtype, device=x.device)
    dct = torch.cos((2 * k + 1) * k[:, None] * (torch.pi / 16)) / 2
    dct[0] *= 0.5**0.5
    step = (
        ((table.to(x, non_blocking=True) * scale.view(-1, 1, 1) + 50) / 100).floor().clamp(1, 255)
    )
    step = step[:, None, None, None]
    kept = (dct @ blocks @ dct.T / step).round() * step
    return (dct.T @ kept @ dct).transpose(3, 4).reshape(n, c, h, w)


def super_resolution_pair(
    x: Tensor,
    index: Tensor,
    *,
    factor: int,
    crop: int | None,
    settings: Degradation,
    seed: int,
    purpose: str,
) -> tuple[Tensor, Tensor]:
    """Training pairs of super-resolution: images or random crops, and degraded small versions.

    Args:
        x: [N, 3, R, R] in [-1, 1].
        index: [N] indices of the images in the stream; best on the CPU, since crop positions are
            read by the host.
        factor: ratio of the sides; crops start at multiples of it.
        crop: side of the crops in pixels; None for whole images.
        purpose: name of the random stream.

    Returns:
        The images or crops [N, 3, C, C], and their degraded versions [N, 3, C/factor, C/factor].
    """
    if crop and crop < x.shape[2]:
        positions = (x.shape[2] - crop) // factor + 1
        u = draws.uniform(seed, f"{purpose}/crop", index, 2)
        corners = ((u * positions).long() * factor).tolist()
        x = torch.stack(
            [p[:, t : t + crop, s : s + crop] for p, (t, s) in zip(x, corners, strict=True)]
        )
    small = F.avg_pool2d(x, factor)
    return x, degrade(small, index, settings, seed=seed, purpose=f"{purpose}/degrade")
