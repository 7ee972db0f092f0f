"""A file lock on this machine, released when its process ends, even by a kill."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

MAX_RETRIES = 5  # in case :func:`is_held` has the lock for a moment


@contextlib.contextmanager
def held(path: Path) -> Iterator[TextIO]:
    """Hold the lock and yield its file, which the holder may write.

    Raises:
        BlockingIOError: Another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        _take(lock)
        yield lock


def _take(lock: TextIO) -> None:
    """Take the lock, retrying in case another process only tests it."""
    for attempt in range(MAX_RETRIES + 1):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if attempt == MAX_RETRIES:
                raise
            time.sleep(0.1)


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock."""
    if not path.exists():
        return False
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
