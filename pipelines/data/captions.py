"""Cleaning of captions before they are encoded."""

from __future__ import annotations

import unicodedata
from typing import Any

from pipelines.data.rows import Reason, RowError

MAX_WORDS = 10_000


def clean_caption(text: Any) -> str:
    """Normalize a caption to Unicode NFC and collapse each run of white space to one space.

    Both encoders' tokenizers do at least this much (T5's folds to NFKC), so nothing is lost, and
    captions that look the same compare equal.

    Args:
        text: ``str``, or UTF-8 ``bytes``. Undecodable bytes may also arrive as lone surrogates.

    Raises:
        RowError: The caption is missing, not text, empty, without a letter or digit of any script,
            longer than ``MAX_WORDS`` words, or has control characters other than tabs and line
            ends.
    """
    if text is None:
        raise RowError(Reason.CAPTION_MISSING)
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    if not isinstance(text, str):
        raise RowError(Reason.CAPTION_TYPE, type(text).__name__)
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise RowError(Reason.CAPTION_ENCODING, ascii(text))
    if any(unicodedata.category(c) == "Cc" and c not in "\t\n\r" for c in text):
        raise RowError(Reason.CAPTION_CONTROL, ascii(text))
    words = unicodedata.normalize("NFC", text).split()
    if not words:
        raise RowError(Reason.CAPTION_EMPTY)
    if len(words) > MAX_WORDS:
        raise RowError(Reason.CAPTION_WORDS, f"{len(words)} words, the limit is {MAX_WORDS}")
    if not any(c.isalnum() for word in words for c in word):
        raise RowError(Reason.CAPTION_WORDLESS, ascii(text))
    return " ".join(words)


def try_clean_caption(text: Any) -> tuple[str, RowError | None]:
    """The clean caption and None, or an empty text and the error."""
    try:
        return clean_caption(text), None
    except RowError as error:
        return "", error


def as_list(value: Any) -> list[Any]:
    """The captions in a cell, as a list; an empty list becomes one missing caption."""
    return list(value) or [None] if isinstance(value, list | tuple) else [value]


def caption_lines(text: bytes) -> list[Any]:
    """The captions in a ``.txt``: one per line, blank lines ignored."""
    found = [line for line in text.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    return found or [b""]
