"""Types and helpers that all format readers share."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.data.files import Location
from pipelines.data.rows import RejectedRow
from pipelines.formatting import printable
from pipelines.spec.data import Source

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")


@dataclass(frozen=True, kw_only=True)
class SourceShard:
    """The unit of work: a Parquet file, a tar file, or some of a folder's pictures."""

    name: str
    """Unique in the data set, independent of where the data set is, and safe as a file name."""

    folder: str
    """The data set's folder: an absolute path, or a URL."""

    path: str
    """The file, relative to the folder. For a folder of pictures: its caption file, or empty."""

    identity: str
    """Hash of the content. It does not cover pictures that a Parquet file names by path or URL:
    change the Parquet file along with them."""

    bytes: int
    prefix: str = ""
    """In a data set of several folders: what keeps this folder's file names apart from the
    others'."""

    files: tuple[str, ...] = ()
    """For a folder of pictures: the pictures and caption texts of this shard."""

    span: tuple[str, str | None] = ("", None)
    """For a folder of pictures: the first path of this shard and of the next one, without suffixes,
    in sorted order. None: there is no next one."""

    pictures_folder: str = ""
    """The folder that a caption file's picture names are relative to, if not the root."""

    follow_links: bool = False
    """Whether links may lead out of the folder."""

    @property
    def url(self) -> str:
        """Full path, for display and manifests: bytes that are not UTF-8 are escaped."""
        return printable(posixpath.join(self.folder, self.path))

    @property
    def location(self) -> Location:
        """The data set's folder, to read files from."""
        return Location(self.folder, self.follow_links)


@dataclass(frozen=True, kw_only=True)
class RawRow:
    """One row as a format reader finds it, unchecked."""

    key: Any
    source: str
    image: Any
    """Bytes, a path or URL as ``str``, or anything else that was found."""

    captions: list[Any]
    scores: Mapping[str, Any] = field(default_factory=dict)


RawRows = Iterator[RawRow | RejectedRow]


def shard_name(path: str) -> str:
    """A shard name from a file's path: readable, and unique by a hash."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.rsplit(".", 1)[0]).strip(".-")[-60:]
    return f"{stem}-{hashlib.sha256(utf8(path)).hexdigest()[:10]}"


def is_image(path: str) -> bool:
    """Whether the suffix is one of :data:`IMAGE_SUFFIXES`."""
    return path.rpartition(".")[2].lower() in IMAGE_SUFFIXES


def is_text(path: str) -> bool:
    return path.lower().endswith(".txt")


def stem(path: str) -> str:
    """A path without its suffix."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.rpartition('.')[0] or name}"


def utf8(text: str) -> bytes:
    """Encode any text: restores bytes that were not UTF-8, and accepts lone surrogates."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def candidate_fields(named: str, default: str, others: tuple[str, ...]) -> tuple[str, ...]:
    """Field names to look for: the user's choice, or the default and its usual alternatives."""
    return (named,) if named != default else (default, *others)


def caption_fields(source: Source) -> tuple[str, ...]:
    """Field names to look for captions in."""
    return candidate_fields(source.caption, "caption", ("text", "captions"))


def first_present(record: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The first of the named fields that the record has, or None."""
    return next((record[n] for n in names if n in record), None)
