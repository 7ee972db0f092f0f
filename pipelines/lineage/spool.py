"""What is still to be told to MLflow, on disk: a file of JSON lines, and how far it is delivered.

``NAME.jsonl`` is only ever appended to, ``NAME.delivered`` holds the byte up to which MLflow has
it. A line that was written survives the process that wrote it, whatever signal ends that; not a
power cut, after which the next run of the pipeline writes the record again from the store.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Item = dict[str, Any]

KEPT_BYTES = 8 * 2**20
"""A file with more than this is begun anew once all in it is delivered."""


class Spool:
    """One execution's items for one MLflow. One process appends; one thread of it delivers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mark = path.with_suffix(".delivered")
        self.more = threading.Event()
        """Set as soon as there is something new to deliver."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._drop_torn_line()
        self._lock = threading.Lock()
        self._out = path.open("ab")
        noted = self.mark.read_bytes() if self.mark.exists() else b""
        self.delivered = int(noted) if noted.isdigit() else 0  # delivering twice does no harm
        if self.delivered > path.stat().st_size:  # a kill came while the file was begun anew
            self.delivered = 0

    def _drop_torn_line(self) -> None:
        """A kill in the middle of a write left half a line, of which nothing can be made."""
        if not self.path.exists():
            return
        with self.path.open("rb+") as file:
            data = file.read()
            file.truncate(data.rfind(b"\n") + 1)

    def append(self, item: Item) -> None:
        """Keeps an item; it is the operating system's, not yet the disk's, when this returns."""
        line = json.dumps(item, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self._out.write(line)
            self._out.flush()
        self.more.set()

    def waiting(self) -> Iterator[tuple[int, Item | None]]:
        """(byte behind it, item) of what is not yet delivered; None for a line that is no JSON."""
        with self.path.open("rb") as file:
            file.seek(self.delivered)
            while (line := file.readline()).endswith(b"\n"):
                try:
                    item = json.loads(line)
                except ValueError:
                    item = None
                yield file.tell(), item if isinstance(item, dict) else None

    def done_to(self, byte: int) -> None:
        """Notes that everything before a byte is delivered."""
        with self._lock:
            if byte > KEPT_BYTES and byte == self.path.stat().st_size:
                self._out.truncate(0)
                byte = 0
            scratch = self.mark.with_suffix(".delivered.new")
            scratch.write_text(str(byte))
            scratch.replace(self.mark)
            self.delivered = byte

    @property
    def left(self) -> int:
        """Items that are not yet delivered."""
        return sum(1 for _ in self.waiting()) if self.path.exists() else 0

    @property
    def is_empty(self) -> bool:
        return self.delivered >= self.path.stat().st_size

    def close(self) -> None:
        """Lets go of the file, and removes it if all of it is delivered."""
        self._out.close()
        if self.is_empty:
            self.mark.unlink(missing_ok=True)
            self.path.unlink()
            with contextlib.suppress(OSError):  # others are in it
                self.path.parent.rmdir()
