"""A lock on this machine that ends with the process that holds it, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

MAX_RETRIES = 5  # of those who take a lock for a moment, to see whether it is held


@contextlib.contextmanager
def held(path: Path) -> Iterator[TextIO]:
    """Holds the lock, whose file is the holder's to write; BlockingIOError if another does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        _take(lock)
        yield lock


def _take(lock: TextIO) -> None:
    """In spite of those who only look whether it is taken."""
    for attempt in range(MAX_RETRIES + 1):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if attempt == MAX_RETRIES:
                raise
            time.sleep(0.1)


def is_held(path: Path) -> bool:
    """Whether a living process holds it."""
    if not path.exists():
        return False
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
