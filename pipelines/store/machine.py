"""Which machine, and which of its PID namespaces, this process runs in.

Host names do not tell: two containers may have the same one, and each its own process 1.
"""

from __future__ import annotations

import hashlib
import os
import socket
from functools import cache
from pathlib import Path


@cache
def machine_id() -> str:
    """Id of the running kernel, the same in all its containers; without Linux, the host's name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


@cache
def pid_namespace() -> str:
    """Id of the namespace in which this process's id is valid; empty without Linux."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


@cache
def namespace_digest() -> str:
    """Eight hex digits of the machine and the PID namespace, for names of temporary files."""
    return hashlib.sha256(f"{machine_id()} {pid_namespace()}".encode()).hexdigest()[:8]


def is_running(process: int) -> bool:
    """Whether a process of this PID namespace runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
