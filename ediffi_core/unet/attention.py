"""Attention of pixels to each other and to the tokens, each a residual branch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ediffi_core.conditioning import Tokens
from ediffi_core.unet.blocks import norm_of, zeroed
from ediffi_core.unet.config import Norm, heads_of


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
        self.heads = heads_of(channels, head_channels)
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
        self.heads = heads_of(channels, head_channels)
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
    (eDiff-I section 4.3), so ``w A/√d`` is added to what attention works out anyway. A maximum
    below 0, which would push painted words away, counts as 0 (our default). The maximum
    (or the standard deviation, by choice) is taken over each picture and head alone, so that a
    picture does not depend on its batch (our default).

    Args:
        side: the height and width that the queries come from.
    """
    mask, paint = tokens.mask[:, None, None], tokens.paint
    if paint is None:
        return mask
    valid = tokens.mask[:, None]  # [N, 1, T]
    height = score_max(q, k, valid) if paint.weight == "max" else score_std(q, k, valid)
    w = paint.level[:, None] * height * q.shape[3] ** -0.5  # [N, heads]
    pads = torch.zeros_like(mask, dtype=w.dtype).masked_fill(~mask, float("-inf"))
    return torch.addcmul(pads, w[:, :, None, None], paint.maps.at(side)).to(q.dtype)


def score_max(q: Tensor, k: Tensor, valid: Tensor) -> Tensor:
    """Largest entry of ``Q Kᵀ`` over the pixels and the valid tokens, or 0 if all are negative.

    → [N, heads] float32
    """
    by_token = (q @ k.transpose(2, 3)).amax(dim=2).float()
    return by_token.masked_fill(~valid, float("-inf")).amax(dim=2).clamp(min=0)


def score_std(q: Tensor, k: Tensor, valid: Tensor) -> Tensor:
    """Standard deviation of ``Q Kᵀ`` over the pixels and the valid tokens. → [N, heads] float32

    From the moments of Q and K, so that the scores themselves are never written down:
    ``Σᵢⱼ (qᵢ·kⱼ − m)² = tr(QᵀQ KᵀK)``, once the keys are taken relative to their mean; what the
    keys' mean adds to the scores varies with the pixel alone, and is added as such.
    """
    q, k = q.float(), k.float() * valid[..., None]
    count = valid.sum(dim=2, keepdim=True)[..., None]  # [N, 1, 1, 1]
    centre = k.sum(dim=2, keepdim=True) / count
    spread = (k - centre) * valid[..., None]
    pairs = (q.transpose(2, 3) @ q) * (spread.transpose(2, 3) @ spread)  # [N, heads, d, d]
    within = pairs.sum(dim=(2, 3)) / (q.shape[2] * count[:, :, 0, 0])
    between = (q @ centre.transpose(2, 3)).var(dim=(2, 3), correction=0)
    return (within + between).clamp(min=0).sqrt()
