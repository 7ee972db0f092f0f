"""A queue of items for MLflow on disk: a file of JSON lines and the position of the delivered part.

``NAME.jsonl`` is append-only; ``NAME.delivered`` holds the number of bytes that MLflow already has.
A written line survives the death of the process, by any signal. It may not survive a power cut;
then the next run of the pipeline writes the record again from the store.

A spool is one process's: it holds a lock on the file, so that the successor of a driver that was
paused does not write, truncate or deliver the same file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Item = dict[str, Any]
"""An event: its type under ``do``, and all that MLflow needs to know of it."""

MAX_SPOOLS = 100
"""Drivers of one execution on one machine that may hold a spool, all paused but one."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk that takes nothing more, until something is removed."""

TRUNCATE_ABOVE_BYTES = 8 * 2**20
"""A file larger than this is truncated once everything in it is delivered."""


def private_folder(shared: Path) -> Path:
    """A folder for spools that this user alone may read, in one that all users share.

    It is always the same, so that the next run finds what this one leaves; but another, new one if
    somebody else has put something in its place.
    """
    name = f"ediffi-mlflow-spool-{os.getuid()}"
    folder = shared / name
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=shared))
    folder.chmod(0o700)
    return folder


def free_spool(path: Path) -> Spool:
    """The spool at a path, ``NAME.MORE``; if another process has it, at ``NAME.1.MORE`` or further.

    Raises:
        OSError: The folder cannot be written.
    """
    name, _, more = path.name.partition(".")
    for number in range(1, MAX_SPOOLS):
        try:
            return Spool(path)
        except BlockingIOError:
            path = path.with_name(f"{name}.{number}.{more}")
    return Spool(path)


class Spool:
    """One execution's items for one MLflow; one process appends, one of its threads delivers."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            BlockingIOError: Another process has the spool.
        """
        self.path = path
        self.position_file = path.with_suffix(".delivered")
        self.has_new = threading.Event()
        """Set when there is something new to deliver."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._out = path.open("ab", buffering=0)
        try:
            fcntl.flock(self._out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._out.close()
            raise
        self._drop_torn_line()
        noted = self.position_file.read_bytes() if self.position_file.exists() else b""
        # Without a valid position it delivers from the start: delivering twice is harmless.
        self.delivered = int(noted) if noted.isdigit() else 0
        if self.delivered > path.stat().st_size:  # a kill came while the file was truncated
            self.delivered = 0

    def _drop_torn_line(self) -> None:
        """Remove the half line that a kill in the middle of a write may have left."""
        with self.path.open("rb+") as file:
            data = file.read()
            file.truncate(data.rfind(b"\n") + 1)

    def append(self, item: Item) -> None:
        """Append an item; on return the operating system has it, but not necessarily the disk.

        Raises:
            OSError: The disk is full, say; nothing was appended.
        """
        left = memoryview(json.dumps(item, ensure_ascii=False).encode() + b"\n")
        with self._lock:
            size = self._out.seek(0, os.SEEK_END)
            try:
                while left:
                    left = left[self._out.write(left) :]
            except OSError:
                self._out.truncate(size)
                raise
        self.has_new.set()

    def pending_items(self) -> Iterator[tuple[int, Item | None]]:
        """(end position in bytes, item) of undelivered lines; the item is None if it is no JSON."""
        with self.path.open("rb") as file:
            file.seek(self.delivered)
            while (line := file.readline()).endswith(b"\n"):
                try:
                    item = json.loads(line)
                except ValueError:
                    item = None
                yield file.tell(), item if isinstance(item, dict) else None

    def mark_delivered(self, byte: int) -> None:
        """Record that everything before a position is delivered.

        On a full disk only this process knows of it; what is delivered twice does no harm.
        """
        with self._lock:
            all_large = byte > TRUNCATE_ABOVE_BYTES and byte == self.path.stat().st_size
            try:
                self._note(0 if all_large else byte)
                if all_large:
                    self._out.truncate(0)
                    byte = 0
            except OSError as error:
                if error.errno not in FULL:
                    raise
            self.delivered = byte

    def _note(self, byte: int) -> None:
        scratch = self.position_file.with_suffix(".delivered.new")
        scratch.write_text(str(byte))
        scratch.replace(self.position_file)

    def drop(self) -> None:
        """Take everything as delivered."""
        self.mark_delivered(self.path.stat().st_size)

    @property
    def pending(self) -> int:
        """Number of items that are not delivered yet."""
        return sum(1 for _ in self.pending_items()) if self.path.exists() else 0

    @property
    def is_empty(self) -> bool:
        """Whether everything is delivered."""
        return self.delivered >= self.path.stat().st_size

    def close(self, discard: bool = False) -> None:
        """Close the file, and remove it if everything is delivered or to be discarded."""
        if discard or self.is_empty:
            self.position_file.unlink(missing_ok=True)
            self.path.unlink()
            with contextlib.suppress(OSError):  # it holds other spools
                self.path.parent.rmdir()
        self._out.close()


class InMemory:
    """What the spool of this process did not take, to be delivered like a spool."""

    def __init__(self, items: Iterable[Item]) -> None:
        self.items = list(items)
        self.delivered = 0
        self.has_new = threading.Event()

    def pending_items(self) -> Iterator[tuple[int, Item]]:
        """(number of items up to here, item) of those that are not delivered."""
        yield from enumerate(self.items[self.delivered :], self.delivered + 1)

    def mark_delivered(self, count: int) -> None:
        """Note that so many items are delivered."""
        self.delivered = count

    def drop(self) -> None:
        """Take everything as delivered."""
        self.delivered = len(self.items)

    @property
    def left(self) -> list[Item]:
        """The items that are not delivered yet."""
        return self.items[self.delivered :]

    @property
    def pending(self) -> int:
        """Number of items that are not delivered yet."""
        return len(self.left)

    @property
    def is_empty(self) -> bool:
        """Whether everything is delivered."""
        return not self.left

    def close(self) -> None:
        """There is no file."""
