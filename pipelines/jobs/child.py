"""Run a command in a process of its own, and pass a signal to stop on to it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from pipelines.executor.stopping import Stop

POLL_S = 0.2

GRACE_S = 60.0
"""Seconds from the signal to SIGKILL."""

RECORD_S = 35.0
"""Seconds that a driver may take for its record, once its nodes have saved."""


def run(command: Sequence[str], log: Path, stop: Stop, grace_s: float = GRACE_S) -> int:
    """Run a command to its end and return its exit code.

    The command leads a process group of its own, so a Ctrl-C in the terminal does not reach its
    children directly. A signal to stop is sent to the command alone; after ``grace_s`` the whole
    group is killed.

    Args:
        log: file that its output is appended to.
        stop: holds the signal, once there is one.
        grace_s: seconds from the signal to SIGKILL.

    Returns:
        The exit code; negative: the signal that killed it.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    signalled_at = 0.0
    while process.poll() is None:
        if stop.signal and not signalled_at:
            signalled_at = time.monotonic()
            process.send_signal(stop.signal)
        elif signalled_at and time.monotonic() - signalled_at > grace_s:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        time.sleep(POLL_S)
    return process.returncode


def last_lines(log: Path, count: int, max_bytes: int = 8192) -> list[str]:
    """The last lines of a file that are not empty, from its last ``max_bytes``."""
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - max_bytes))
        text = file.read().decode(errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()][-count:]
