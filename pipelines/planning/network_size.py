"""Parameters and FLOPs of a network, counted from its configuration alone.

Nothing is built, so a billion weights need no memory and a plan takes no time. The count follows
what :mod:`ediffi_core.unet` builds; a test compares both for every preset.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from ediffi_core.embeddings import EmbeddingSpec
from ediffi_core.unet import UNetConfig

TOKENS = 77
"""Tokens of every text sequence, as in :data:`ediffi_core.unet.SIZES`: the most a caption is padded
to."""


class Size(NamedTuple):
    """Size of a network."""

    parameters: int
    flops: float
    """FLOPs of a forward pass of one image; a multiply-add counts as 2."""


class Count:
    """Adds up layers. A ``side`` is that of a layer's output, in pixels."""

    def __init__(self, config: UNetConfig) -> None:
        self.config = config
        self.emb = 4 * config.channels
        self.parameters, self.flops = 0, 0.0

    def linear(self, c_in: int, c_out: int, times: int = 1, bias: bool = True) -> None:
        """A linear layer that is applied ``times`` times (to pixels or tokens)."""
        self.parameters += c_in * c_out + bias * c_out
        self.flops += 2.0 * c_in * c_out * times

    def conv(self, c_in: int, c_out: int, side: int, kernel: int = 3) -> None:
        self.linear(c_in * kernel**2, c_out, side**2)

    def up_conv(self, c_in: int, c_out: int, side: int) -> None:
        """A 3×3 kernel, applied as a transposed 4×4 convolution to an input of half the side."""
        self.parameters += 9 * c_in * c_out + c_out
        self.flops += 2.0 * 16 * c_in * c_out * (side // 2) ** 2

    def norm(self, channels: int) -> None:
        self.parameters += channels * (1 if self.config.norm == "pixel" else 2)

    def block(self, c_in: int, c_out: int, side: int, up: bool = False) -> None:
        """A residual block; ``up`` doubles the side of its input."""
        self.norm(c_in)
        (self.up_conv if up else self.conv)(c_in, c_out, side)
        self.linear(self.emb, 2 * c_out)
        self.norm(c_out)
        self.conv(c_out, c_out, side)
        if c_in != c_out:
            self.conv(c_in, c_out, side, kernel=1)

    def attention(self, width: int, level: int, side: int) -> None:
        """A level's self-attention (pixels × pixels) and cross-attention (pixels × tokens)."""
        trained, pixels = self.config.sides[level], side**2
        if trained in self.config.self_attention:
            self.norm(width)
            self.linear(width, 3 * width, pixels)
            self.flops += 4.0 * pixels**2 * width
            self.linear(width, width, pixels)
        if trained in self.config.cross_attention:
            tokens = 1 + sum(TOKENS for s in self.sequences) + sum(s.attended for s in self.pooled)
            self.norm(width)
            self.linear(width, width, pixels)
            self.linear(self.config.token_dim, 2 * width, tokens)
            self.flops += 4.0 * pixels * tokens * width
            self.linear(width, width, pixels)

    @property
    def sequences(self) -> list[EmbeddingSpec]:
        return [s for s in self.config.embeddings if s.kind == "sequence"]

    @property
    def pooled(self) -> list[EmbeddingSpec]:
        return [s for s in self.config.embeddings if s.kind == "pooled"]

    def conditioning(self) -> None:
        """Embedding of the noise level, null token, and projections of the text embeddings."""
        c = self.config
        self.linear(c.channels, self.emb)
        self.linear(self.emb, self.emb)
        self.parameters += c.token_dim
        for spec in self.sequences:
            self.linear(spec.dim, c.token_dim, TOKENS, bias=False)
        for spec in self.pooled:
            self.linear(spec.dim, self.emb, bias=False)
            if spec.attended:
                self.linear(spec.dim, c.token_dim, bias=False)

    def adm(self, sides: list[int]) -> None:
        """Encoder, middle and decoder of layout ``adm``; ``sides`` by level."""
        levels = list(zip(self.config.widths, self.config.blocks_by_level, sides))
        width, kept, last = self.config.channels, [self.config.channels], len(levels) - 1
        for level, (w, count, side) in enumerate(levels):
            for _ in range(count):
                self.block(width, w, side)
                self.attention(w, level, side)
                kept.append(width := w)
            if level < last:
                self.block(w, w, side // 2)
                kept.append(w)
        for _ in range(2):
            self.block(width, width, sides[last])
        self.attention(width, last, sides[last])
        for level, (w, count, side) in reversed(list(enumerate(levels))):
            for _ in range(count + 1):
                self.block(width + kept.pop(), w, side)
                self.attention(w, level, side)
                width = w
            if level:
                self.block(w, w, side * 2, up=True)

    def efficient(self, sides: list[int]) -> None:
        """Encoder and decoder of layout ``efficient``; ``sides`` by level."""
        widths = self.config.widths
        levels = list(zip(widths, self.config.blocks_by_level, sides))
        width = self.config.channels
        for level, (w, count, side) in enumerate(levels):
            self.conv(width, w, side)
            for _ in range(count):
                self.block(w, w, side)
                self.attention(w, level, side)
            width = w
        for level, (w, count, side) in reversed(list(enumerate(levels))):
            for _ in range(count):
                self.block(2 * w, w, side)
                self.attention(w, level, side)
            self.up_conv(w, widths[level - 1] if level else self.config.channels, side * 2)


@lru_cache(maxsize=256)
def size_of(config: UNetConfig, side: int | None = None) -> Size:
    """Count a network's parameters and FLOPs.

    Args:
        side: side of the image it runs on, in pixels; by default its training resolution.
    """
    side = side or config.resolution
    count = Count(config)
    count.conditioning()
    pictures = config.image_channels
    count.conv(pictures * (2 if config.low_res else 1), config.channels, side)
    sides = [s * side // config.resolution for s in config.sides]
    (count.adm if config.layout == "adm" else count.efficient)(sides)
    count.norm(config.out_width)
    count.conv(config.out_width, pictures, side)
    return Size(count.parameters, count.flops)


def embeddings(
    t5: int, clip_text: int, clip: int, more: Iterable[EmbeddingSpec] = ()
) -> tuple[EmbeddingSpec, ...]:
    """Embeddings that a network reads from encoders, in the paper's order.

    Args:
        t5: width of T5's token vectors.
        clip_text: width of CLIP's text tower.
        clip: width of the space that CLIP's two towers project to.
        more: embeddings of further encoders.
    """
    return (
        EmbeddingSpec(name="clip_text", dim=clip_text, kind="sequence"),
        EmbeddingSpec(name="t5", dim=t5, kind="sequence"),
        EmbeddingSpec(name="clip_text_pooled", dim=clip, kind="pooled", source="clip_text"),
        EmbeddingSpec(name="clip_image", dim=clip, kind="pooled", attended=True),
        *more,
    )
