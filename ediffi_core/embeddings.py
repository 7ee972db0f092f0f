"""The embeddings that a denoiser is conditioned on, by name and width. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

PICTURE = "clip_image"
"""The embedding of the picture itself, absent when a picture is drawn for a caption alone."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingSpec:
    """One input of the conditioning; to add an encoder, add one of these."""

    name: str
    """The column in the shards: ``t5``, ``clip_text``, ``clip_text_pooled``, ``clip_image``."""

    dim: int
    """Width of a vector."""

    kind: Literal["sequence", "pooled"]
    """A sequence of token vectors (attended), or one vector (added to the time embedding)."""

    source: str = ""
    """The group that is dropped together in training: CLIP's text sequence and its pooled vector
    share ``clip_text``. Empty: the embedding is its own group."""

    attended: bool = False
    """Whether a pooled vector is also attended as one more token (eDiff-I: the CLIP image)."""

    def __post_init__(self) -> None:
        if self.dim < 1 or self.kind not in ("sequence", "pooled"):
            raise ValueError(
                f"embedding {self.name!r} needs dim >= 1 and kind 'sequence' or 'pooled', "
                f"got dim={self.dim}, kind={self.kind!r}"
            )

    @property
    def group(self) -> str:
        """The name of the group that is dropped together."""
        return self.source or self.name


def text_encoders(specs: Iterable[EmbeddingSpec]) -> list[str]:
    """Text encoders of a denoiser, by the groups that training drops: ``clip_text``, ``t5``."""
    return list(dict.fromkeys(spec.group for spec in specs if spec.name != PICTURE))
