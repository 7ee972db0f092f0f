"""A command in a process of its own, to which a signal to stop is passed on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from pipelines.executor.stopping import Stop

LOOK_S = 0.2

GRACE_S = 60.0
"""From the signal to SIGKILL. A driver saves in 25 s, and its record takes a little more."""


def run(command: Sequence[str], log: Path, stop: Stop, grace_s: float = GRACE_S) -> int:
    """Runs a command to its end, what it prints going to a file; → its exit code.

    It leads a process group, so that a terminal's Ctrl-C reaches it once, and not its own children
    before it could tell them. Told to stop, it alone is told; out of grace, the whole group is
    killed.
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
    told = 0.0
    while process.poll() is None:
        if stop.signal and not told:
            told = time.monotonic()
            process.send_signal(stop.signal)
        elif told and time.monotonic() - told > grace_s:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        time.sleep(LOOK_S)
    return process.returncode


def last_lines(log: Path, count: int, within: int = 8192) -> list[str]:
    """The last lines that a command printed, empty ones left out."""
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - within))
        text = file.read().decode(errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()][-count:]
