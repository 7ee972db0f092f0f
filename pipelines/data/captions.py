"""Captions as the encoders are to see them."""

from __future__ import annotations

import unicodedata
from typing import Any

from pipelines.data.rows import BadRow, Reason

MAX_WORDS = 10_000


def checked(text: Any) -> str:
    """A caption in Unicode's NFC with every run of white space made one space.

    Both encoders' tokenizers do as much (T5's folds to NFKC), so nothing is lost, and texts that
    look the same are the same.

    Args:
        text: ``str``, or ``bytes`` of UTF-8. Undecodable bytes may also come as lone surrogates.

    Raises:
        BadRow: It is missing, no text, empty, without a letter or digit of any script, longer
            than ``MAX_WORDS``, or has control characters (tabs and line ends are white space).
    """
    if text is None:
        raise BadRow(Reason.CAPTION_MISSING)
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    if not isinstance(text, str):
        raise BadRow(Reason.CAPTION_TYPE, type(text).__name__)
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise BadRow(Reason.CAPTION_ENCODING, ascii(text))
    if any(unicodedata.category(c) == "Cc" and c not in "\t\n\r" for c in text):
        raise BadRow(Reason.CAPTION_CONTROL, ascii(text))
    words = unicodedata.normalize("NFC", text).split()
    if not words:
        raise BadRow(Reason.CAPTION_EMPTY)
    if len(words) > MAX_WORDS:
        raise BadRow(Reason.CAPTION_WORDS, f"{len(words)}, at most {MAX_WORDS}")
    if not any(c.isalnum() for word in words for c in word):
        raise BadRow(Reason.CAPTION_WORDLESS, ascii(text))
    return " ".join(words)


def objection(text: Any) -> tuple[str, BadRow | None]:
    """The caption and no objection, or an empty text and the objection."""
    try:
        return checked(text), None
    except BadRow as bad:
        return "", bad


def listed(value: Any) -> list[Any]:
    """The captions in a cell: a list's entries, or the one; none is one that is missing."""
    return list(value) or [None] if isinstance(value, list | tuple) else [value]


def lines(text: bytes) -> list[Any]:
    """The captions in a ``.txt``: one a line, blank lines aside."""
    found = [line for line in text.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    return found or [b""]
