"""A lock on this machine that ends with the process that holds it, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

LOOKERS = 5  # of those who take a lock for a moment, to see whether it is held


@contextlib.contextmanager
def held(place: Path) -> Iterator[TextIO]:
    """Holds the lock, whose file is the holder's to write; BlockingIOError if another does."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("a+") as lock:
        _take(lock)
        yield lock


def _take(lock: TextIO) -> None:
    """In spite of those who only look whether it is taken."""
    for attempt in range(LOOKERS + 1):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if attempt == LOOKERS:
                raise
            time.sleep(0.1)


def is_held(place: Path) -> bool:
    """Whether a living process holds it."""
    if not place.exists():
        return False
    with place.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
