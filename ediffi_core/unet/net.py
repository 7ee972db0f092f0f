"""The networks: ADM's U-Net for the base, Imagen's Efficient U-Net for super-resolution.

Both consist of a stem, a list of stages and an output layer; the layout decides the stages.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ediffi_core.conditioning import Conditioning, Projection, Tokens
from ediffi_core.unet.attention import CrossAttention, SelfAttention
from ediffi_core.unet.blocks import (
    NoiseEmbedding,
    Resample,
    ResBlock,
    UpConv,
    make_norm,
    zero_init,
)
from ediffi_core.unet.config import UNetConfig


class Stage(nn.Module):
    """A block followed by optional attention, with its skip connections."""

    def __init__(self, block: nn.Module, *, level: int, keep: bool = False, join: bool = False):
        super().__init__()
        self.block = block
        self.self_attention: nn.Module | None = None
        self.cross_attention: nn.Module | None = None
        self.level = level
        self.keep = keep
        """Whether the output is kept as a skip connection for the decoder."""

        self.join = join
        """Whether the input is concatenated with the last kept skip connection."""

    def forward(self, x: Tensor, emb: Tensor, tokens: Tokens) -> Tensor:
        """The block, then self-attention and cross-attention where the layer has them.

        Args:
            x: features [N, C, H, W].
            emb: noise embedding [N, D].
            tokens: what cross-attention attends to, [N, L, D].
        """
        x = self.block(x, emb) if isinstance(self.block, ResBlock) else self.block(x)
        if self.self_attention is not None:
            x = self.self_attention(x)
        if self.cross_attention is not None:
            x = self.cross_attention(x, tokens)
        return x


class UNet(nn.Module):
    """The raw network ``F(x, c_noise, conditioning)`` inside the preconditioning."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointed: frozenset[int] = frozenset()
        """Levels with activation checkpointing: recomputed in the backward pass to save memory."""

        emb = 4 * config.channels
        self.noise = NoiseEmbedding(config.channels, emb)
        self.projection = Projection(config.embeddings, config.token_dim, emb)
        c_in = config.image_channels * (2 if config.low_res else 1)
        self.stem = nn.Conv2d(c_in, config.channels, 3, padding=1)
        self.stages = nn.ModuleList(
            _adm(config, emb) if config.layout == "adm" else _efficient(config, emb)
        )
        self.norm_out = make_norm(config.norm, config.out_width)
        self.out = zero_init(nn.Conv2d(config.out_width, config.image_channels, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditioning) -> Tensor:
        """Evaluate the network.

        Args:
            x: noisy images [N, C, H, W], scaled by c_in.
            c_noise: [N].

        Returns:
            [N, C, H, W].

        Raises:
            ValueError: H or W is not a multiple of the network's factor.
        """
        height, width, factor = *x.shape[2:], self.config.factor
        if height % factor or width % factor:
            raise ValueError(
                f"a network of {self.config.levels} levels needs sides that are multiples of "
                f"{factor}, got {height}×{width}"
            )
        tokens, pooled = self.projection(cond, c_noise)
        emb = self.noise(c_noise)
        emb = F.silu(emb if pooled is None else emb + pooled)

        h = stem = self.stem(self.with_low_res(x, cond))
        kept = [h] if self.config.layout == "adm" else []
        for stage in self.stages:
            if stage.join:
                h = torch.cat([h, kept.pop()], dim=1)
            if self.training and stage.level in self.checkpointed:
                h = checkpoint(stage, h, emb, tokens, use_reentrant=False)
            else:
                h = stage(h, emb, tokens)
            if stage.keep:
                kept.append(h)
        if self.config.layout == "efficient":
            h = h + stem
        return self.out(F.silu(self.norm_out(h)))

    def with_low_res(self, x: Tensor, cond: Conditioning) -> Tensor:
        """x with the upsampled low-resolution image as further channels, if configured."""
        if not self.config.low_res:
            return x
        return torch.cat([x, cond.upsampled_low_res(x)], dim=1)


def _attend(stage: Stage, config: UNetConfig, width: int, side: int) -> Stage:
    """Add the attention that the configuration has at this resolution."""
    heads, norm = config.head_channels, config.norm
    if side in config.self_attention:
        stage.self_attention = SelfAttention(width, heads, norm)
    if side in config.cross_attention:
        stage.cross_attention = CrossAttention(width, config.token_dim, heads, norm)
    return stage


def _adm(config: UNetConfig, emb: int) -> list[Stage]:
    """ADM: residual blocks resample; the decoder has one more block per level, all with skips."""

    def block(c_in: int, c_out: int, resample: Resample = "none") -> ResBlock:
        return ResBlock(c_in, c_out, emb, resample, config.norm)

    stages: list[Stage] = []
    width, widths = config.channels, config.widths
    kept = [width]
    last = config.levels - 1
    for level, (w, count, side) in enumerate(
        zip(widths, config.blocks_by_level, config.sides, strict=True)
    ):
        for _ in range(count):
            stage = Stage(block(width, w), level=level, keep=True)
            stages.append(_attend(stage, config, w, side))
            kept.append(width := w)
        if level < last:
            stages.append(Stage(block(w, w, "down"), level=level, keep=True))
            kept.append(w)
    stages.append(_attend(Stage(block(width, width), level=last), config, width, config.sides[-1]))
    stages.append(Stage(block(width, width), level=last))
    for level in reversed(range(config.levels)):
        w, side = widths[level], config.sides[level]
        for _ in range(config.blocks_by_level[level] + 1):
            stage = Stage(block(width + kept.pop(), w), level=level, join=True)
            stages.append(_attend(stage, config, w, side))
            width = w
        if level:
            stages.append(Stage(block(w, w, "up"), level=level))
    return stages


def _efficient(config: UNetConfig, emb: int) -> list[Stage]:
    """Efficient U-Net (arXiv:2205.11487, appendix B): downsamples before a level's blocks."""

    def block(c_in: int, c_out: int) -> ResBlock:
        return ResBlock(c_in, c_out, emb, norm=config.norm)

    stages: list[Stage] = []
    width, widths = config.channels, config.widths
    for level, w in enumerate(widths):
        stages.append(Stage(nn.Conv2d(width, w, 3, stride=2, padding=1), level=level))
        for _ in range(config.blocks_by_level[level]):
            stage = Stage(block(w, w), level=level, keep=True)
            stages.append(_attend(stage, config, w, config.sides[level]))
        width = w
    for level in reversed(range(config.levels)):
        w, side = widths[level], config.sides[level]
        for _ in range(config.blocks_by_level[level]):
            stage = Stage(block(2 * w, w), level=level, join=True)
            stages.append(_attend(stage, config, w, side))
        above = widths[level - 1] if level else config.channels
        stages.append(Stage(UpConv(w, above), level=level))
    return stages
