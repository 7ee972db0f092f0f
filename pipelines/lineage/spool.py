"""A queue of items for MLflow on disk: a file of JSON lines and the position of the delivered part.

``NAME.jsonl`` is append-only; ``NAME.delivered`` holds the number of bytes that MLflow already has.
A written line survives the death of the process, by any signal. It may not survive a power cut;
then the next run of the pipeline writes the record again from the store.

A spool is one process's: it holds a lock on the file, so that the successor of a driver that was
paused does not write, truncate or deliver the same file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Item = dict[str, Any]
"""An event: its type under ``do``, and all that MLflow needs to know of it."""

MAX_SPOOLS = 100
"""Drivers of one execution on one machine that may hold a spool, all paused but one."""

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
        """Record that everything before a position is delivered."""
        with self._lock:
            if byte > TRUNCATE_ABOVE_BYTES and byte == self.path.stat().st_size:
                self._out.truncate(0)
                byte = 0
            scratch = self.position_file.with_suffix(".delivered.new")
            scratch.write_text(str(byte))
            scratch.replace(self.position_file)
            self.delivered = byte

    @property
    def pending(self) -> int:
        """Number of items that are not yet delivered."""
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
