"""Self-attention over pixels and cross-attention to tokens, as residual branches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ediffi_core.conditioning import Tokens
from ediffi_core.token_groups import TokenGroups
from ediffi_core.unet.blocks import make_norm, zero_init
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
    """Pixels [N, C, H, W] attend to each other."""

    def __init__(self, channels: int, head_channels: int, norm: Norm = "group") -> None:
        super().__init__()
        self.heads = heads_of(channels, head_channels)
        self.norm = make_norm(norm, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] plus what its pixels attend to in each other; the same shape."""
        q, k, v = (split(t, self.heads) for t in self.qkv(as_sequence(self.norm(x))).chunk(3, 2))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + as_image(self.out(attended), x)


class CrossAttention(nn.Module):
    """Pixels [N, C, H, W] attend to the conditioning's tokens; padding is masked out."""

    def __init__(
        self, channels: int, token_dim: int, head_channels: int, norm: Norm = "group"
    ) -> None:
        super().__init__()
        self.heads = heads_of(channels, head_channels)
        self.norm = make_norm(norm, channels)
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(token_dim, 2 * channels)
        self.out = zero_init(nn.Linear(channels, channels))

    def queries(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, heads, H W, C / heads]"""
        return split(self.q(as_sequence(self.norm(x))), self.heads)

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[N, T, token_dim] → keys and values, [N, heads, T, C / heads] each"""
        k, v = self.kv(tokens).chunk(2, dim=2)
        return split(k, self.heads), split(v, self.heads)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """x [N, C, H, W] plus what its pixels attend to in tokens [N, L, D]; the same shape."""
        q = self.queries(x)
        if tokens.groups is None:
            k, v = self.keys_values(tokens.values)
            mask = attention_mask(q, k, tokens, x.shape[2:])
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            attended = self.by_group(q, tokens.groups)
        return x + as_image(self.out(attended.transpose(1, 2).flatten(2)), x)

    def by_group(self, q: Tensor, groups: TokenGroups) -> Tensor:
        """What queries [N, heads, H W, d] attend to in each group's tokens; the same shape."""
        parts = []
        for rows, values, mask in groups.groups:
            k, v = self.keys_values(values)
            some = q.index_select(0, rows)
            parts.append(F.scaled_dot_product_attention(some, k, v, attn_mask=mask[:, None, None]))
        return torch.cat(parts).index_select(0, groups.inverse)


def attention_mask(q: Tensor, k: Tensor, tokens: Tokens, side: torch.Size) -> Tensor:
    """The mask argument of scaled dot-product attention.

    Painted attention is ``softmax((Q Kᵀ + w A)/√d) V`` with ``w = w' log(1 + σ) max(Q Kᵀ)``
    (eDiff-I section 4.3), so the mask is ``w A/√d``, added to the scores. Our defaults: a negative
    maximum, which would push painted words away, counts as 0; and the maximum or standard
    deviation is taken per image and head, so that an image does not depend on its batch.

    Args:
        q: queries [N, heads, H W, d].
        k: keys [N, heads, T, d].
        side: (H, W) of the queries.

    Returns:
        bool [N, 1, 1, T], True to attend; with paint [N, heads, H W, T] in q's dtype.
    """
    mask, paint = tokens.mask[:, None, None], tokens.paint
    if paint is None:
        return mask
    valid = tokens.mask[:, None]  # [N, 1, T]
    scale = score_max(q, k, valid) if paint.weight == "max" else score_std(q, k, valid)
    w = paint.level[:, None] * scale * q.shape[3] ** -0.5  # [N, heads]
    pads = torch.zeros_like(mask, dtype=w.dtype).masked_fill(~mask, float("-inf"))
    return torch.addcmul(pads, w[:, :, None, None], paint.maps.at(side)).to(q.dtype)


def score_max(q: Tensor, k: Tensor, valid: Tensor) -> Tensor:
    """Largest entry of ``Q Kᵀ`` over pixels and valid tokens, at least 0. → [N, heads] float32

    Args:
        valid: [N, 1, T] bool.
    """
    by_token = (q @ k.transpose(2, 3)).amax(dim=2).float()
    return by_token.masked_fill(~valid, float("-inf")).amax(dim=2).clamp(min=0)


def score_std(q: Tensor, k: Tensor, valid: Tensor) -> Tensor:
    """Standard deviation of ``Q Kᵀ`` over pixels and valid tokens. → [N, heads] float32

    Computed from moments of Q and K without materialising the scores: with centred keys,
    ``Σᵢⱼ (qᵢ·kⱼ)² = tr(QᵀQ KᵀK)``. The keys' mean adds a term that depends on the pixel only; its
    variance is added separately.

    Args:
        valid: [N, 1, T] bool.
    """
    q, k = q.float(), k.float() * valid[..., None]
    count = valid.sum(dim=2, keepdim=True)[..., None]  # [N, 1, 1, 1]
    centre = k.sum(dim=2, keepdim=True) / count
    spread = (k - centre) * valid[..., None]
    pairs = (q.transpose(2, 3) @ q) * (spread.transpose(2, 3) @ spread)  # [N, heads, d, d]
    within = pairs.sum(dim=(2, 3)) / (q.shape[2] * count[:, :, 0, 0])
    between = (q @ centre.transpose(2, 3)).var(dim=(2, 3), correction=0)
    return (within + between).clamp(min=0).sqrt()
