"""What a data set yields: rows, and what is no row with the reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Reason(StrEnum):
    """Every reason for which something is quarantined. Counts are kept by these texts."""

    IMAGE_MISSING = "image is missing"
    IMAGE_EMPTY = "image is empty"
    IMAGE_TYPE = "image is neither bytes nor a path"
    IMAGE_AMBIGUOUS = "sample has several images"
    IMAGE_FETCH = "image cannot be fetched"
    IMAGE_AWAY = "image's server is away"
    """May pass: the shard is embedded again another time."""

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
    """The only reason that costs no row: the row comes too, with its other captions."""

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
    """One picture, encoded as it was found, with its captions."""

    key: str
    source: str
    """The file it comes from, relative to the data set's folder."""

    image: bytes = field(repr=False)
    captions: tuple[str, ...]
    """At least one, each as :func:`pipelines.data.captions.checked` returns it."""

    scores: dict[str, float] = field(default_factory=dict)
    """Those of ``Source.scores`` that the row has."""


@dataclass(frozen=True)
class Bad:
    """Something that is no row. Its texts are printed to terminals: see :func:`printable`."""

    key: str
    source: str
    reason: Reason
    detail: str = ""
    """What was met, for whoever looks into it; not part of what is counted."""

    def __post_init__(self) -> None:
        for name in ("key", "source", "detail"):
            object.__setattr__(self, name, printable(getattr(self, name)))


def printable(text: str) -> str:
    """With control characters, which a terminal obeys, and halves of characters escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class BadRow(Exception):
    """Raised where a row turns out to be of no use."""

    def __init__(self, reason: Reason, detail: object = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason, self.detail = reason, str(detail)[:200]


def split_captions(
    captions: list[tuple[str, BadRow | None]], key: str, source: str
) -> tuple[tuple[str, ...], list[Bad]]:
    """The captions without an objection, and a Bad for each of the others.

    Raises:
        BadRow: None is left; with the first objection.
    """
    kept = tuple(text for text, objection in captions if objection is None)
    objections = [(i, o) for i, (_, o) in enumerate(captions, 1) if o is not None]
    if not kept:
        raise objections[0][1]
    return kept, [
        Bad(key, source, Reason.CAPTION_DROPPED, f"{i} of {len(captions)}: {objection}")
        for i, objection in objections
    ]
