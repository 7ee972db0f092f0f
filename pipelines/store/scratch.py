"""Temporary files and folders: their names say who writes them, so that others can remove them."""

from __future__ import annotations

import os
import re
import socket
import tempfile
import time
import uuid
from pathlib import Path

from pipelines.store.machine import is_running, namespace_digest

A_DAY_S = 86_400


def temp_suffix() -> str:
    """Suffix of a temporary file or folder that names its writer.

    ``.host.process.namespace.random``, where the namespace is that in which the process's id holds.
    """
    unique = f"{namespace_digest()}.{uuid.uuid4().hex[:8]}"
    return f".{socket.gethostname()}.{os.getpid()}.{unique}"


def is_abandoned(path: Path, now: float) -> bool:
    """Whether the writer of a temporary file is dead, or elsewhere and idle for a day.

    Args:
        now: the time by the clock that stamps the folder's files, as of :func:`folder_time`.
    """
    here = rf"\.(\d+)\.{namespace_digest()}\.[0-9a-f]{{8}}(\.tmp)?$"
    if mine := re.search(here, path.name):
        return not is_running(int(mine[1]))  # Ray Train's scratch is as old as the training
    try:
        return now - path.stat().st_mtime > A_DAY_S
    except OSError:  # just removed
        return False


def folder_time(folder: Path) -> float:
    """Seconds since 1970 by the clock that stamps a folder's files: on a share, the server's."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock", suffix=".tmp") as probe:
            return Path(probe.name).stat().st_mtime
    except OSError:  # missing, or not to be written
        return time.time()
