"""File locks on this machine, released when their process ends, even by a kill."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
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


@contextlib.contextmanager
def shared(path: Path) -> Iterator[None]:
    """Hold the lock together with other readers; see :func:`remove_unused`."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            if _is_at(lock, path):
                yield
                return


def remove_unused(path: Path, remove: Callable[[], None]) -> None:
    """Call ``remove`` and remove the lock's file, unless a reader holds the lock."""
    try:
        with path.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(lock, path):
                remove()
                path.unlink(missing_ok=True)
    except (FileNotFoundError, BlockingIOError):
        return


def _is_at(lock: TextIO, path: Path) -> bool:
    """Whether the open file is still the one at the path."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except FileNotFoundError:
        return False
