"""The two outcomes of reading a data set: rows, and rejected rows with their reasons."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from pipelines.formatting import printable


class Reason(StrEnum):
    """Why a row is quarantined or filtered out.

    Manifests count rows by these texts: changing one splits the counts of stored versions.
    """

    IMAGE_MISSING = "image is missing"
    IMAGE_EMPTY = "image is empty"
    IMAGE_TYPE = "image is neither bytes nor a path"
    IMAGE_AMBIGUOUS = "sample has several images"
    IMAGE_FETCH = "image cannot be fetched"
    IMAGE_AWAY = "image's server is away"
    """Temporary: the shard is embedded again by a later run."""

    URL_HOST = "image's host is not allowed by `urls:`"
    IMAGE_LARGE = "image file is too large"
    IMAGE_UNKNOWN = "image is of no known format"
    IMAGE_BROKEN = "image is damaged or cut short"
    IMAGE_PIXELS = "image has too many pixels"
    IMAGE_DEPTH = "image has neither 8 nor 16 bits a channel"
    IMAGE_SMALL = "image is too small"
    CAPTION_MISSING = "caption is missing"
    CAPTION_TYPE = "caption is no text"
    CAPTION_ENCODING = "caption is not UTF-8"
    CAPTION_EMPTY = "caption is empty"
    CAPTION_CONTROL = "caption has control characters"
    CAPTION_WORDLESS = "caption has neither letter nor digit"
    CAPTION_WORDS = "caption has too many words"
    CAPTION_LENGTH = "caption's length is out of bounds"
    CAPTION_DROPPED = "one of several captions is left out"
    """The only reason that loses no row: the row is kept with its other captions."""

    CLIP_SCORE = "CLIP score is too low"
    SCORE_MISSING = "score is missing"
    SCORE_TYPE = "score is no number"
    SCORE_BOUNDS = "score is out of bounds"
    EMBEDDING_INFINITE = "embedding is not finite"
    KEY_MISSING = "key is missing"
    KEY_REPEATED = "key is repeated"
    PATH_OUTSIDE = "path leads out of the data set"
    MEMBER_TYPE = "member is no plain file"
    MEMBER_ORDER = "members of a sample lie apart in the tar"
    METADATA_BROKEN = "metadata cannot be parsed"
    COLUMN_MISSING = "file lacks a column"
    COLUMN_REPEATED = "file has two columns of one name"
    FILE_BROKEN = "file is damaged or cut short"


@dataclass(frozen=True)
class Row:
    """One picture, as the encoded bytes of the source, with its captions."""

    key: str
    source: str
    """Path of the source file, relative to the data set's folder."""

    image: bytes = field(repr=False)
    captions: tuple[str, ...]
    """At least one; each cleaned by :func:`pipelines.data.captions.clean_caption`."""

    scores: dict[str, float] = field(default_factory=dict)
    """Score name → value, for those of ``Source.scores`` that the row has."""


@dataclass(frozen=True)
class RejectedRow:
    """A rejected row or file. Its texts are safe to print."""

    key: str
    source: str
    reason: Reason
    detail: str = ""
    """What was found, for debugging; counts ignore it."""

    def __post_init__(self) -> None:
        for name in ("key", "source", "detail"):
            object.__setattr__(self, name, printable(getattr(self, name)))


class RowError(Exception):
    """A row cannot be used; ``reason`` and ``detail`` say why."""

    def __init__(self, reason: Reason, detail: object = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason, self.detail = reason, str(detail)[:200]


def split_captions(
    captions: list[tuple[str, RowError | None]], key: str, source: str
) -> tuple[tuple[str, ...], list[RejectedRow]]:
    """Separate valid captions from invalid ones.

    Args:
        captions: (text, error) pairs; the error is None where the caption is valid.
        key: Key of the row.
        source: Path of the source file.

    Returns:
        The valid captions, and one :class:`RejectedRow` for each invalid caption.

    Raises:
        RowError: No caption is valid; this is the first caption's error.
    """
    kept = tuple(text for text, error in captions if error is None)
    errors = [(i, o) for i, (_, o) in enumerate(captions, 1) if o is not None]
    if not kept:
        raise errors[0][1]
    return kept, [
        RejectedRow(key, source, Reason.CAPTION_DROPPED, f"{i} of {len(captions)}: {error}")
        for i, error in errors
    ]
