"""What the readers of the formats share."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.data.files import Place
from pipelines.data.rows import Bad, printable
from pipelines.spec.data import Source

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")


@dataclass(frozen=True, kw_only=True)
class SourceShard:
    """The unit of work: a Parquet or tar file, or some of a folder's pictures."""

    name: str
    """Unique in the data set, the same wherever it lies, and safe as a file name."""

    folder: str
    """The data set's folder: an absolute path, or a URL."""

    path: str
    """The file, relative to the folder; of a folder's pictures their caption file, or nothing."""

    identity: str
    """Of the content. Pictures that a Parquet file names by path or URL are not part of it:
    change the Parquet with them."""

    bytes: int
    prefix: str = ""
    """Of a data set of several folders: what tells this one's files from the others'."""

    files: tuple[str, ...] = ()
    """Of a folder's pictures: those of this shard and their captions."""

    span: tuple[str, str | None] = ("", None)
    """Of a folder's pictures: where the shard's begin among all paths without endings, and where
    the next one's do."""

    beside: str = ""
    """Of a caption file: the folder that it takes the names of pictures from, if not the root."""

    @property
    def url(self) -> str:
        """To be shown and kept: bytes that are no UTF-8 are escaped."""
        return printable(posixpath.join(self.folder, self.path))

    @property
    def place(self) -> Place:
        return Place(self.folder)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a format has for one row, unchecked."""

    key: Any
    source: str
    image: Any
    """Bytes, an address as ``str``, or whatever else was found."""

    captions: list[Any]
    scores: Mapping[str, Any] = field(default_factory=dict)


Findings = Iterator[Found | Bad]


def name_of(path: str) -> str:
    """A file's path as a shard's name: readable, and by its hash unique."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.rsplit(".", 1)[0]).strip(".-")[-60:]
    return f"{stem}-{hashlib.sha256(utf8(path)).hexdigest()[:10]}"


def is_image(path: str) -> bool:
    return path.rpartition(".")[2].lower() in IMAGE_SUFFIXES


def is_text(path: str) -> bool:
    return path.lower().endswith(".txt")


def stem(path: str) -> str:
    """A path without its ending."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.rpartition('.')[0] or name}"


def utf8(text: str) -> bytes:
    """Any text as bytes: bytes that were no UTF-8 as they were, and halves of an emoji."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def fields(named: str, default: str, others: tuple[str, ...]) -> tuple[str, ...]:
    """Where to look for a field: where the user says, or else under any of its usual names."""
    return (named,) if named != default else (default, *others)


def caption_fields(source: Source) -> tuple[str, ...]:
    return fields(source.caption, "caption", ("text", "captions"))


def first_of(record: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The first of the named fields that the record has; else None."""
    return next((record[n] for n in names if n in record), None)
