"""The blocks every network here is built from: noise embedding, residual block, attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def zeroed(module: nn.Module) -> nn.Module:
    """Starts a branch at nothing, so that a fresh residual network is the identity."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels // 4), channels)


class NoiseEmbedding(nn.Module):
    """Sines and cosines of ``c_noise = ln(σ)/4``, then a two-layer perceptron.

    c_noise spans about 3 units in all, so the frequencies go from half a turn over that span to
    far below a bin of any sampler (our default; the paper names none).
    """

    freqs: Tensor

    def __init__(self, channels: int, out_dim: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.logspace(0, 2, channels // 2), persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(channels, out_dim), nn.SiLU(), nn.Linear(out_dim, out_dim)
        )

    def forward(self, c_noise: Tensor) -> Tensor:
        angle = c_noise[:, None] * self.freqs
        out: Tensor = self.mlp(torch.cat([angle.cos(), angle.sin()], dim=1))
        return out


class ResBlock(nn.Module):
    """ADM's residual block: scale-shift norm from the global embedding, resampling inside."""

    def __init__(self, c_in: int, c_out: int, emb_dim: int, resample: str = "none") -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = group_norm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.scale_shift = nn.Linear(emb_dim, 2 * c_out)
        self.norm2 = group_norm(c_out)
        self.conv2 = zeroed(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(self.resampled(F.silu(self.norm1(x))))
        scale, shift = self.scale_shift(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        out: Tensor = self.skip(self.resampled(x)) + h
        return out


class Attention(nn.Module):
    """Self-attention over pixels, then cross-attention to the text tokens, each a residual."""

    def __init__(self, channels: int, token_dim: int, head_channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // head_channels)
        self.norm_self = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out_self = zeroed(nn.Linear(channels, channels))
        self.norm_cross = group_norm(channels)
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(token_dim, 2 * channels)
        self.out_cross = zeroed(nn.Linear(channels, channels))

    def split(self, x: Tensor) -> Tensor:
        """[N, T, C] → [N, heads, T, C / heads]"""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out = F.scaled_dot_product_attention(
            self.split(q), self.split(k), self.split(v), attn_mask=mask
        )
        return out.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """x [N, C, H, W]; tokens [N, T, token_dim]; mask [N, T] bool, True where to attend."""
        q, k, v = self.qkv(self.norm_self(x).flatten(2).transpose(1, 2)).chunk(3, dim=2)
        x = x + self.to_image(self.out_self(self.attend(q, k, v, None)), x)
        q = self.q(self.norm_cross(x).flatten(2).transpose(1, 2))
        k, v = self.kv(tokens).chunk(2, dim=2)
        return x + self.to_image(self.out_cross(self.attend(q, k, v, mask[:, None, None])), x)

    @staticmethod
    def to_image(seq: Tensor, like: Tensor) -> Tensor:
        return seq.transpose(1, 2).unflatten(2, like.shape[2:])
