"""Attention of pixels to each other and to the tokens, each a residual branch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ediffi_core.conditioning import Tokens
from ediffi_core.unet.blocks import Norm, norm_of, zeroed


def split(x: Tensor, heads: int) -> Tensor:
    """[N, T, C] → [N, heads, T, C / heads]"""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def as_sequence(x: Tensor) -> Tensor:
    """[N, C, H, W] → [N, H W, C]"""
    return x.flatten(2).transpose(1, 2)


def as_image(x: Tensor, like: Tensor) -> Tensor:
    """[N, H W, C] → [N, C, H, W]"""
    return x.transpose(1, 2).unflatten(2, like.shape[2:])


class SelfAttention(nn.Module):
    """Pixels attend to pixels."""

    def __init__(self, channels: int, head_channels: int, norm: Norm = "group") -> None:
        super().__init__()
        self.heads = max(1, channels // head_channels)
        self.norm = norm_of(norm, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split(t, self.heads) for t in self.qkv(as_sequence(self.norm(x))).chunk(3, 2))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + as_image(self.out(attended), x)


class CrossAttention(nn.Module):
    """Pixels attend to ``[null, CLIP text, T5, CLIP image]`` tokens; pads are masked out."""

    def __init__(
        self, channels: int, token_dim: int, head_channels: int, norm: Norm = "group"
    ) -> None:
        super().__init__()
        self.heads = max(1, channels // head_channels)
        self.norm = norm_of(norm, channels)
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(token_dim, 2 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def queries(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, heads, H W, C / heads]"""
        return split(self.q(as_sequence(self.norm(x))), self.heads)

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[N, T, token_dim] → twice [N, heads, T, C / heads]"""
        k, v = self.kv(tokens).chunk(2, dim=2)
        return split(k, self.heads), split(v, self.heads)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        q, (k, v) = self.queries(x), self.keys_values(tokens.values)
        mask = attention_mask(q, k, tokens, x.shape[2:])
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return x + as_image(self.out(attended.transpose(1, 2).flatten(2)), x)


def attention_mask(q: Tensor, k: Tensor, tokens: Tokens, side: torch.Size) -> Tensor:
    """Where to attend, bool [N, 1, 1, T]; with paint what is added, [N, heads, H W, T] as q is.

    Painted attention is ``softmax((Q Kᵀ + w A)/√d) V`` with ``w = w' log(1 + σ) max(Q Kᵀ)``
    (eDiff-I section 4.3), so ``w A/√d`` is added to what attention works out anyway. The maximum
    (or the standard deviation, by choice) is taken over each picture and head alone, so that a
    picture does not depend on its batch (our default).

    Args:
        side: the height and width that the queries come from.
    """
    mask, paint = tokens.mask[:, None, None], tokens.paint
    if paint is None:
        return mask
    scores = (q @ k.transpose(2, 3)).float()
    if paint.weight == "max":
        height = scores.masked_fill(~mask, float("-inf")).amax(dim=(2, 3))
    else:
        count = mask.sum(dim=3, keepdim=True) * q.shape[2]
        mean = (scores * mask).sum(dim=(2, 3), keepdim=True) / count
        away = (scores - mean) * mask
        height = (away.square().sum(dim=(2, 3)) / count[:, :, 0, 0]).sqrt()
    w = paint.level[:, None] * height * q.shape[3] ** -0.5  # [N, heads]
    bias = w[:, :, None, None] * paint.maps.at(side)
    return bias.masked_fill(~mask, float("-inf")).to(q.dtype)
