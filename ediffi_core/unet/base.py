"""The base network: ADM's U-Net with text cross-attention (eDiff-I section 4 and appendix B)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ediffi_core.conditioning import Conditioning, EmbeddingSpec, Projection
from ediffi_core.unet.blocks import Attention, NoiseEmbedding, ResBlock, group_norm, zeroed


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Everything that fixes a network's weights and their meaning; stored in its checkpoints."""

    resolution: int
    """Side of the pictures it is trained on; only the attention levels depend on it."""

    channels: int
    """Width of the first level."""

    channel_mult: tuple[int, ...]
    """Width of every level, as a multiple of ``channels``; each level halves the side."""

    blocks: int
    """Residual blocks a level on the way down (one more on the way up)."""

    attention: tuple[int, ...]
    """Sides at which blocks attend to themselves and to the text."""

    head_channels: int = 64
    token_dim: int = 256
    """Width of the tokens that cross-attention reads."""

    embeddings: tuple[EmbeddingSpec, ...] = ()
    image_channels: int = 3

    def __post_init__(self) -> None:
        factor = 2 ** (len(self.channel_mult) - 1)
        if self.resolution % factor:
            raise ValueError(
                f"a network of {len(self.channel_mult)} levels needs a resolution that "
                f"{factor} divides, got {self.resolution}"
            )
        sides = [self.resolution >> i for i in range(len(self.channel_mult))]
        if extra := [a for a in self.attention if a not in sides]:
            raise ValueError(f"attention at {extra} has no effect: the levels' sides are {sides}")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(d: Mapping[str, Any]) -> UNetConfig:
        """The inverse of :meth:`to_dict`, also after JSON has made lists of the tuples."""
        return UNetConfig(
            **{
                **d,
                "channel_mult": tuple(d["channel_mult"]),
                "attention": tuple(d["attention"]),
                "embeddings": tuple(EmbeddingSpec(**e) for e in d["embeddings"]),
            }
        )


class UNet(nn.Module):
    """``F(x, c_noise, conditioning)``: the raw network inside the preconditioning."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        c0 = config.channels
        emb = 4 * c0
        widths = [c0 * m for m in config.channel_mult]

        self.noise = NoiseEmbedding(c0, emb)
        self.projection = Projection(config.embeddings, config.token_dim, emb)
        self.stem = nn.Conv2d(config.image_channels, c0, 3, padding=1)

        def attention(width: int, side: int) -> nn.Module:
            if side not in config.attention:
                return nn.Identity()
            return Attention(width, config.token_dim, config.head_channels)

        self.down, skips = nn.ModuleList(), [c0]
        width, side = c0, config.resolution
        for level, w in enumerate(widths):
            for _ in range(config.blocks):
                self.down.append(Stage(ResBlock(width, w, emb), attention(w, side)))
                skips.append(width := w)
            if level < len(widths) - 1:
                self.down.append(Stage(ResBlock(w, w, emb, "down"), nn.Identity()))
                skips.append(w)
                side //= 2

        self.middle = nn.ModuleList(
            [
                Stage(ResBlock(width, width, emb), attention(width, side)),
                Stage(ResBlock(width, width, emb), nn.Identity()),
            ]
        )

        self.up, self.joins = nn.ModuleList(), []
        for level, w in reversed(list(enumerate(widths))):
            for _ in range(config.blocks + 1):
                self.up.append(Stage(ResBlock(width + skips.pop(), w, emb), attention(w, side)))
                self.joins.append(True)
                width = w
            if level:
                self.up.append(Stage(ResBlock(w, w, emb, "up"), nn.Identity()))
                self.joins.append(False)
                side *= 2

        self.norm_out = group_norm(width)
        self.out = zeroed(nn.Conv2d(width, config.image_channels, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditioning) -> Tensor:
        """x [N, C, H, W] scaled by c_in; c_noise [N]; → [N, C, H, W]"""
        tokens, mask, pooled = self.projection(cond, len(x))
        emb = self.noise(c_noise)
        emb = F.silu(emb if pooled is None else emb + pooled)

        h = self.stem(x)
        skips = [h]
        for stage in self.down:
            h = stage(h, emb, tokens, mask)
            skips.append(h)
        for stage in self.middle:
            h = stage(h, emb, tokens, mask)
        for stage, join in zip(self.up, self.joins, strict=True):
            if join:
                h = torch.cat([h, skips.pop()], dim=1)
            h = stage(h, emb, tokens, mask)
        out: Tensor = self.out(F.silu(self.norm_out(h)))
        return out


class Stage(nn.Module):
    """A residual block and the attention behind it, if its level has one."""

    def __init__(self, block: ResBlock, attention: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: Tensor, emb: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.block(x, emb)
        return self.attention(x, tokens, mask) if isinstance(self.attention, Attention) else x


# Parameters are those of the U-Net with T5-XXL and CLIP ViT-L/14 embeddings, or the demo's own.
PRESETS: dict[str, UNetConfig] = {
    # 1.2 M parameters; 16×16 pictures on two CPU cores
    "demo": UNetConfig(
        resolution=16,
        channels=32,
        channel_mult=(1, 2, 3),
        blocks=1,
        attention=(8, 4),
        head_channels=32,
        token_dim=96,
    ),
    # a few hundred thousand: what the tests train
    "smoke": UNetConfig(
        resolution=16,
        channels=16,
        channel_mult=(1, 2),
        blocks=1,
        attention=(8,),
        head_channels=16,
        token_dim=32,
    ),
    # ADM's 64×64 recipe (paper.md section 4: remembered, not published)
    "base64": UNetConfig(
        resolution=64,
        channels=256,
        channel_mult=(1, 2, 4, 4),
        blocks=3,
        attention=(32, 16, 8),
        head_channels=64,
        token_dim=1024,
    ),
}
