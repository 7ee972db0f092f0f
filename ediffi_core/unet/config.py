"""Configurations of U-Nets, and the networks of the paper and of the demo as presets. No torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

from ediffi_core.embeddings import EmbeddingSpec

Layout = Literal["adm", "efficient"]
Norm = Literal["group", "pixel"]


def groups_of(channels: int) -> int:
    """Groups of a group norm; for a multiple of 4 they have at least 4 channels each."""
    return math.gcd(32, channels // 4)


def heads_of(channels: int, head_channels: int) -> int:
    """Heads of an attention; one, where a head is wider than the level."""
    return max(1, channels // head_channels)


class FieldError(ValueError):
    """A field of a configuration has a wrong value; ``field`` is its name."""

    def __init__(self, text: str, field: str = "") -> None:
        super().__init__(text)
        self.field = field


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Everything that determines a network's weights and their meaning; stored in its checkpoints.

    Raises:
        FieldError: No such network can be built, or it would fail when it runs.
    """

    resolution: int
    """Side in pixels of the pictures (or crops) in training. It decides on which levels attention
    takes place; the network accepts other sides too, see :attr:`factor`."""

    channels: int
    """Channels of the first level."""

    channel_mult: tuple[int, ...]
    """Channels of each level, as multiples of ``channels``; each level halves the side."""

    blocks: int | tuple[int, ...]
    """Residual blocks of each level on the way down: one number for all levels, or one each."""

    layout: Layout = "adm"
    """``adm``: residual blocks resample, the first level works at full resolution, and the way up
    has one block more a level. ``efficient`` (after Imagen's Efficient U-Net): every level halves
    the side before its blocks and doubles it after them, so no block works at full resolution."""

    self_attention: tuple[int, ...] = ()
    """Sides at which attention among pixels follows the blocks."""

    cross_attention: tuple[int, ...] = ()
    """Sides at which attention to the tokens follows the blocks."""

    head_channels: int = 64
    """Channels of an attention head."""

    token_dim: int = 256
    """Width of the tokens that cross-attention reads."""

    norm: Norm = "group"
    """Normalization. ``pixel`` normalizes each pixel by itself, so the receptive field stays finite
    and a network trained on crops can run in tiles; ``group`` is group normalization."""

    embeddings: tuple[EmbeddingSpec, ...] = ()
    """The embeddings that the network is conditioned on."""

    image_channels: int = 3
    low_res: bool = False
    """Super-resolution: the network reads a small picture beside the noisy one."""

    residual: bool = False
    """Super-resolution: predict the difference from the enlarged small picture (SRDiff,
    Li et al. 2022); ``sigma_data`` is then the difference's standard deviation, 0.1 to 0.2."""

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_sides()
        self._check_widths()

    def _check_numbers(self) -> None:
        for field in ("resolution", "channels", "head_channels", "token_dim", "image_channels"):
            if (given := getattr(self, field)) < 1:
                raise FieldError(f"{field} must be at least 1, got {given}", field)
        if not self.channel_mult or min(self.channel_mult) < 1:
            raise FieldError(
                "channel_mult must have a number from 1 for each level, such as (1, 2, 4), got "
                f"{self.channel_mult}",
                "channel_mult",
            )
        if isinstance(self.blocks, tuple) and len(self.blocks) != self.levels:
            raise FieldError(
                f"blocks {self.blocks} must be one number, or one for each of {self.levels} "
                f"levels, as channel_mult is {self.channel_mult}",
                "blocks",
            )
        if min(self.blocks_by_level) < 1:
            raise FieldError(
                f"blocks must be at least 1 on every level, got {self.blocks}", "blocks"
            )
        for field, known in (("layout", get_args(Layout)), ("norm", get_args(Norm))):
            if (named := getattr(self, field)) not in known:
                raise FieldError(f"{field} is one of {', '.join(known)}, got {named!r}", field)

    def _check_sides(self) -> None:
        if self.resolution % self.factor:
            raise FieldError(
                f"a network of {self.levels} levels needs a resolution that "
                f"{self.factor} divides, got {self.resolution}",
                "resolution",
            )
        if self.residual and not self.low_res:
            raise FieldError(
                "residual is the difference from a small picture, which the first stage does not "
                "read; leave it out",
                "residual",
            )
        for field in ("self_attention", "cross_attention"):
            if extra := sorted({*getattr(self, field)} - {*self.sides}):
                raise FieldError(
                    f"attention at {extra} has no effect: the levels' sides are {self.sides}; "
                    f"write {field} with none but these",
                    field,
                )

    def _check_widths(self) -> None:
        """Check that heads and groups divide the channels of every layer that has them."""
        if self.channels % 2:
            raise FieldError(
                f"channels must be even, for the sines and cosines of the noise level, got "
                f"{self.channels}; write {self.channels + 1}",
                "channels",
            )
        joined = [a + b for a, b in pairwise((self.channels, *self.widths))]
        normed = [self.channels, *self.widths, *(joined if self.layout == "adm" else ())]
        if self.norm == "group" and (bad := [w for w in normed if w % groups_of(w)]):
            raise FieldError(
                f"channels {self.channels} give a layer of {bad[0]}, which group norm cannot "
                f"split evenly; write {-(-self.channels // 4) * 4}, or norm: pixel",
                "channels",
            )
        attention = {*self.self_attention, *self.cross_attention}
        for side, width in zip(self.sides, self.widths):
            if side in attention and width % (heads := heads_of(width, self.head_channels)):
                fit = max(d for d in range(1, self.head_channels + 1) if self.channels % d == 0)
                raise FieldError(
                    f"head_channels {self.head_channels} give {heads} heads at side {side}, which "
                    f"do not divide its {width} channels; write {fit}",
                    "head_channels",
                )

    @property
    def levels(self) -> int:
        """The number of levels."""
        return len(self.channel_mult)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the blocks of each level."""
        return tuple(self.channels * m for m in self.channel_mult)

    @property
    def out_width(self) -> int:
        """Channels that the last layer reads."""
        return self.widths[0] if self.layout == "adm" else self.channels

    @property
    def factor(self) -> int:
        """Number of which the sides of all pictures must be multiples."""
        return 2 ** (self.levels - (self.layout == "adm"))

    @property
    def sides(self) -> list[int]:
        """Side in pixels of the blocks of each level, at the training resolution."""
        first = self.layout == "efficient"
        return [self.resolution >> (i + first) for i in range(self.levels)]

    @property
    def blocks_by_level(self) -> tuple[int, ...]:
        """Residual blocks of each level on the way down."""
        return self.blocks if isinstance(self.blocks, tuple) else (self.blocks,) * self.levels

    def to_dict(self) -> dict[str, Any]:
        """The configuration for JSON. ``residual`` is left out while it is False: checkpoints from
        before it was added keep their model cards and fingerprints."""
        found = dataclasses.asdict(self)
        if not self.residual:
            del found["residual"]
        return found

    @staticmethod
    def from_dict(d: Mapping[str, Any]) -> UNetConfig:
        """The inverse of :meth:`to_dict`; tuples may have become lists in JSON."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in d.items()}
        values["embeddings"] = tuple(EmbeddingSpec(**e) for e in d["embeddings"])
        return UNetConfig(**values)


# eDiff-I's three encoders; the order of the tokens is our choice.
PAPER_EMBEDDINGS = (
    EmbeddingSpec(name="clip_text", dim=768, kind="sequence"),
    EmbeddingSpec(name="t5", dim=4096, kind="sequence"),
    EmbeddingSpec(name="clip_text_pooled", dim=768, kind="pooled", source="clip_text"),
    EmbeddingSpec(name="clip_image", dim=768, kind="pooled", attended=True),
)


class Size(NamedTuple):
    """A network's weights and the cost of running it."""

    parameters: int
    gflops: float
    """10⁹ operations of a forward pass: one picture at the training resolution, token sequences of
    77. A multiplication and an addition count as 2."""


# Not all widths and depths of the paper's networks are known (paper.md, section 4). These are set
# so that Configs A to D add up to the published totals. SIZES lists each network's size.
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
    # The demo: 16×16 pictures, trained on two CPU cores.
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
    # What the tests train.
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

# A test measures these; operations are given to four digits.
SIZES: dict[str, Size] = {
    "base64": Size(993_416_515, 690.8),
    "sr256": Size(276_199_555, 454.7),
    "sr1024": Size(259_317_507, 443.9),
    "demo": Size(2_426_467, 0.1866),
    "demo-sr": Size(679_459, 0.1035),
    "smoke-sr": Size(30_835, 0.003185),
    "smoke": Size(226_131, 0.03799),
}
