"""What fixes a network's weights and their meaning, and the paper's networks as presets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ediffi_core.conditioning import EmbeddingSpec
from ediffi_core.unet.blocks import Norm


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Everything that fixes a network's weights and their meaning; stored in its checkpoints."""

    resolution: int
    """Side of the pictures (or crops) it is trained on; only the attention levels depend on it."""

    channels: int
    """Width of the first level."""

    channel_mult: tuple[int, ...]
    """Width of every level, as a multiple of ``channels``; each level halves the side."""

    blocks: int | tuple[int, ...]
    """Residual blocks a level on the way down, one number for all or one each."""

    layout: Literal["adm", "efficient"] = "adm"
    """``adm``: resampling inside residual blocks, the first level at full resolution, one block
    more on the way up. ``efficient``: every level halves the side before its blocks and doubles
    it behind them, so that no block works at full resolution (Imagen's, shifted in depth)."""

    self_attention: tuple[int, ...] = ()
    """Sides at which blocks are followed by attention among pixels."""

    cross_attention: tuple[int, ...] = ()
    """Sides at which blocks are followed by attention to the tokens."""

    head_channels: int = 64
    token_dim: int = 256
    """Width of the tokens that cross-attention reads."""

    norm: Norm = "group"
    """``pixel`` keeps the receptive field finite: what is trained on crops and run in tiles."""

    embeddings: tuple[EmbeddingSpec, ...] = ()
    image_channels: int = 3
    low_res: bool = False
    """Super-resolution: reads a small picture beside the noisy one."""

    def __post_init__(self) -> None:
        if isinstance(self.blocks, tuple) and len(self.blocks) != self.levels:
            raise ValueError(
                f"blocks {self.blocks} must be one number, or one for each of {self.levels} levels"
            )
        if self.resolution % self.factor:
            raise ValueError(
                f"a network of {self.levels} levels needs a resolution that "
                f"{self.factor} divides, got {self.resolution}"
            )
        attention = {*self.self_attention, *self.cross_attention}
        if extra := sorted(attention - set(self.sides)):
            raise ValueError(
                f"attention at {extra} has no effect: the levels' sides are {self.sides}"
            )

    @property
    def levels(self) -> int:
        return len(self.channel_mult)

    @property
    def factor(self) -> int:
        """Sides of pictures must be multiples of this."""
        return 2 ** (self.levels - (self.layout == "adm"))

    @property
    def sides(self) -> list[int]:
        """Side of every level's blocks, at the training resolution."""
        first = self.layout == "efficient"
        return [self.resolution >> (i + first) for i in range(self.levels)]

    @property
    def blocks_by_level(self) -> tuple[int, ...]:
        return self.blocks if isinstance(self.blocks, tuple) else (self.blocks,) * self.levels

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(d: Mapping[str, Any]) -> UNetConfig:
        """The inverse of :meth:`to_dict`, also after JSON has made lists of the tuples."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in d.items()}
        values["embeddings"] = tuple(EmbeddingSpec(**e) for e in d["embeddings"])
        return UNetConfig(**values)


# eDiff-I's three encoders; the order of the tokens is our default.
PAPER_EMBEDDINGS = (
    EmbeddingSpec(name="clip_text", dim=768, kind="sequence"),
    EmbeddingSpec(name="t5", dim=4096, kind="sequence"),
    EmbeddingSpec(name="clip_text_pooled", dim=768, kind="pooled", source="clip_text"),
    EmbeddingSpec(name="clip_image", dim=768, kind="pooled", attended=True),
)


class Size(NamedTuple):
    parameters: int
    gflops: float
    """Of a forward pass of one picture at the training resolution, its sequences of 77 tokens;
    a multiplication and an addition are 2."""


# Widths and depths of the paper's networks are remembered or ours (paper.md section 4): settings,
# chosen so that Configs A to D add up to the published totals. Parameters and GFLOPs of a forward
# pass at the training resolution stand in SIZES, and a test measures them.
PRESETS: dict[str, UNetConfig] = {
    "base64": UNetConfig(
        resolution=64,
        channels=320,
        channel_mult=(1, 2, 4, 4),
        blocks=(3, 3, 3, 2),
        self_attention=(32, 16, 8),
        cross_attention=(32, 16, 8),
        token_dim=1024,
        embeddings=PAPER_EMBEDDINGS,
    ),
    "sr256": UNetConfig(
        resolution=256,
        channels=128,
        channel_mult=(1, 2, 4, 4),
        blocks=(2, 4, 8, 8),
        layout="efficient",
        self_attention=(16,),
        cross_attention=(16,),
        token_dim=512,
        embeddings=PAPER_EMBEDDINGS,
        low_res=True,
    ),
    "sr1024": UNetConfig(
        resolution=256,  # of the crops; it runs on 1024
        channels=128,
        channel_mult=(1, 2, 4, 4),
        blocks=(2, 4, 8, 8),
        layout="efficient",
        cross_attention=(16,),
        token_dim=512,
        norm="pixel",
        embeddings=PAPER_EMBEDDINGS,
        low_res=True,
    ),
    # 16×16 pictures on two CPU cores
    "demo": UNetConfig(
        resolution=16,
        channels=32,
        channel_mult=(1, 2, 3),
        blocks=1,
        self_attention=(8, 4),
        cross_attention=(16, 8, 4),
        head_channels=32,
        token_dim=96,
    ),
    "demo-sr": UNetConfig(
        resolution=32,
        channels=32,
        channel_mult=(1, 2),
        blocks=(1, 2),
        layout="efficient",
        cross_attention=(8,),
        head_channels=32,
        token_dim=96,
        norm="pixel",
        low_res=True,
    ),
    # what the tests train
    "smoke-sr": UNetConfig(
        resolution=16,
        channels=16,
        channel_mult=(1,),
        blocks=1,
        layout="efficient",
        cross_attention=(8,),
        head_channels=16,
        token_dim=32,
        norm="pixel",
        low_res=True,
    ),
    "smoke": UNetConfig(
        resolution=16,
        channels=16,
        channel_mult=(1, 2),
        blocks=1,
        self_attention=(8,),
        cross_attention=(8,),
        head_channels=16,
        token_dim=32,
    ),
}

# As measured by a test; operations to four digits.
SIZES: dict[str, Size] = {
    "base64": Size(993_416_515, 690.8),
    "sr256": Size(276_199_555, 454.7),
    "sr1024": Size(259_317_507, 443.9),
    "demo": Size(2_426_467, 0.1866),
    "demo-sr": Size(679_459, 0.1035),
    "smoke-sr": Size(30_835, 0.003185),
    "smoke": Size(226_131, 0.03799),
}
