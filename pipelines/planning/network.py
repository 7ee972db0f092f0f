"""A network's parameters and the operations of a forward pass, from its configuration alone.

Counted, not measured: a billion weights need no memory, and a plan is there at once. What is
counted is what :mod:`ediffi_core.unet` builds; a test holds both to each other, for every preset.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from ediffi_core.embeddings import EmbeddingSpec
from ediffi_core.unet import UNetConfig

TOKENS = 77
"""Of every sequence, as in :data:`ediffi_core.unet.SIZES`: what a caption is padded to at most."""


class Size(NamedTuple):
    parameters: int
    flops: float
    """Of a forward pass of one picture; a multiplication and an addition are 2."""


class Count:
    """Adds layers up. Sides are those of what a layer gives; ``times`` how often it is applied."""

    def __init__(self, config: UNetConfig) -> None:
        self.config = config
        self.emb = 4 * config.channels
        self.parameters, self.flops = 0, 0.0

    def linear(self, c_in: int, c_out: int, times: int = 1, bias: bool = True) -> None:
        self.parameters += c_in * c_out + bias * c_out
        self.flops += 2.0 * c_in * c_out * times

    def conv(self, c_in: int, c_out: int, side: int, kernel: int = 3) -> None:
        self.linear(c_in * kernel**2, c_out, side**2)

    def up_conv(self, c_in: int, c_out: int, side: int) -> None:
        """A 3×3 kernel, applied as a transposed one of 4×4 to the picture of half the side."""
        self.parameters += 9 * c_in * c_out + c_out
        self.flops += 2.0 * 16 * c_in * c_out * (side // 2) ** 2

    def norm(self, channels: int) -> None:
        self.parameters += channels * (1 if self.config.norm == "pixel" else 2)

    def block(self, c_in: int, c_out: int, side: int, up: bool = False) -> None:
        """A residual block, that may come to its side by halving or (``up``) by doubling."""
        self.norm(c_in)
        (self.up_conv if up else self.conv)(c_in, c_out, side)
        self.linear(self.emb, 2 * c_out)
        self.norm(c_out)
        self.conv(c_out, c_out, side)
        if c_in != c_out:
            self.conv(c_in, c_out, side, kernel=1)

    def attention(self, width: int, level: int, side: int) -> None:
        """What the level has of it; the products of pixels with pixels, and with tokens."""
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
        """The noise level's embedding, the null token, and the projections."""
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
    """Args: side: of the picture it works on; that of its training by default."""
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
    """What a network reads of encoders of these widths, in the paper's order."""
    return (
        EmbeddingSpec(name="clip_text", dim=clip_text, kind="sequence"),
        EmbeddingSpec(name="t5", dim=t5, kind="sequence"),
        EmbeddingSpec(name="clip_text_pooled", dim=clip, kind="pooled", source="clip_text"),
        EmbeddingSpec(name="clip_image", dim=clip, kind="pooled", attended=True),
        *more,
    )
