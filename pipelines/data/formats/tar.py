"""Read the members of a tar file in order, skipping over damage.

The standard library's reader stops silently at the first header it cannot read; this one reports
the damage and continues at the next readable header.
"""

from __future__ import annotations

import gzip
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.data.files import MAX_FILE_BYTES
from pipelines.data.rows import Reason

BLOCK_BYTES = 512
SKIP_BYTES = 2**20
MAX_HEADER_BYTES = 2**20
NO_CONTENT = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
"""Types without content, whatever size their header gives."""

DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True)
class Member:
    """A file in a tar, or a report of what is wrong there."""

    name: str
    data: bytes | None = None
    """None if the member is not wanted, or bad."""

    bad: Reason | None = None
    detail: str = ""


def members(handle: Any, wanted: Callable[[str], bool]) -> Iterator[Member]:
    """The plain files in a tar or gzipped tar, and reports of damage; folders are skipped.

    Args:
        handle: The open file, at its start; it is read once, forwards.
        wanted: Whether to read the member of this name into memory.
    """
    stream = _Blocks(handle)
    name = size = None  # of the next member, given by an extended header
    lost_at = None
    while True:
        at = stream.at
        try:
            block = stream.read(BLOCK_BYTES)
        except DAMAGE as error:
            yield Member("", bad=Reason.FILE_BROKEN, detail=f"at byte {at}: {error}")
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            if header.size < 0:
                raise tarfile.HeaderError("negative size")
        except tarfile.HeaderError:
            name = size = None
            if lost_at is None and len(block) == BLOCK_BYTES and block.strip(b"\0"):
                lost_at = at
                yield Member("", bad=Reason.FILE_BROKEN, detail=f"no tar header at byte {at}")
            if len(block) < BLOCK_BYTES:
                if not stream.ended and lost_at is None:
                    yield Member("", bad=Reason.FILE_BROKEN, detail=f"cut short at byte {at}")
                return
            stream.ended = not block.strip(b"\0")
            continue
        lost_at, stream.ended = None, False
        extended = header.type in (
            tarfile.XHDTYPE,
            tarfile.SOLARIS_XHDTYPE,
            tarfile.GNUTYPE_LONGNAME,
        )
        label = header.name if name is None else name
        length = header.size if size is None or extended else size
        if header.type in NO_CONTENT:
            length = 0
        keep = extended or (header.isreg() and wanted(label))
        limit = MAX_HEADER_BYTES if extended else MAX_FILE_BYTES
        try:
            data = stream.take(length, keep and length <= limit)
        except DAMAGE as error:
            yield Member(label, bad=Reason.FILE_BROKEN, detail=str(error))
            return
        if extended:
            long, size = _extended(header.type, data or b"", size)
            name = long or name
            continue
        if header.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            continue
        name = size = None
        if header.type == tarfile.GNUTYPE_SPARSE or not (header.isreg() or header.isdir()):
            yield Member(label, bad=Reason.MEMBER_TYPE, detail=f"type {header.type!r}")
        elif keep and data is None:
            yield Member(label, bad=Reason.IMAGE_LARGE, detail=f"{length} bytes")
        elif header.isreg():
            yield Member(label, data)


def _extended(kind: bytes, data: bytes, size: int | None) -> tuple[str | None, int | None]:
    """The name and size that a GNU or pax header sets for the next member."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return data.rstrip(b"\0").decode("utf-8", "surrogateescape"), size
    path = re.search(rb"^\d+ path=(.*)$", data, re.MULTILINE)
    number = re.search(rb"^\d+ size=(\d+)$", data, re.MULTILINE)
    return (
        path[1].decode("utf-8", "surrogateescape") if path else None,
        int(number[1]) if number else size,
    )


class _Blocks:
    """Reads forwards and tracks the position."""

    def __init__(self, handle: Any) -> None:
        magic = handle.read(2)
        handle.seek(0)
        self.handle = gzip.GzipFile(fileobj=handle) if magic == b"\x1f\x8b" else handle
        self.at = 0
        self.ended = False
        """Whether the last block was all zeros, as at the end of a tar."""

    def read(self, size: int) -> bytes:
        parts = []
        while size and (part := self.handle.read(size)):
            parts.append(part)
            self.at += len(part)
            size -= len(part)
        return b"".join(parts)

    def take(self, size: int, keep: bool) -> bytes | None:
        """Read or skip a member and its padding; return its bytes if ``keep``.

        Raises:
            EOFError: The file ends first.
        """
        end = self.at + size
        data = self.read(size) if keep else None
        while self.at < end and self.read(min(SKIP_BYTES, end - self.at)):
            pass
        if self.at < end:
            raise EOFError(f"cut short at byte {self.at}")
        self.read(-size % BLOCK_BYTES)
        return data
