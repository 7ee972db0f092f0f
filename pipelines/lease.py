"""One driver of a pipeline at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from pipelines.store.artifacts import Store

LOOKERS = 5  # `ediffi status` holds a driver's lock for as long as it takes to look


@contextlib.contextmanager
def only_driver(store: Store, pipeline: str) -> Iterator[None]:
    """Holds the pipeline for this process; ValueError if another works on it.

    A bucket has no lock to hold. There it is for whoever starts drivers to start one at a time, as
    a Job or a CronJob with ``concurrencyPolicy: Forbid`` does; two would end in the same results,
    each file being whole whoever wrote it, but do the work twice.
    """
    if not store.is_local:
        yield
        return
    place = Path(store.full(f"executions/.{pipeline}.lock"))
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("a+") as lock:
        try:
            _lock(lock)
        except BlockingIOError:
            lock.seek(0)
            raise ValueError(
                f"pipeline {pipeline} is being run already (process {lock.read().strip()}); "
                "watch it with `ediffi status`"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _lock(file: TextIO) -> None:
    """Takes the lock, in spite of those who only look whether it is taken."""
    for attempt in range(LOOKERS + 1):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if attempt == LOOKERS:
                raise
            time.sleep(0.1)


def is_driven(store: Store, pipeline: str) -> bool | None:
    """Whether a living driver holds the pipeline; None if it cannot be told, as in a bucket."""
    if not store.is_local:
        return None
    place = Path(store.full(f"executions/.{pipeline}.lock"))
    if not place.exists():
        return False
    with place.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
