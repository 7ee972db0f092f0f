"""Shifts ``time.time`` by the seconds in the file ``EDIFFI_TEST_CLOCK``, in every process below.

Python imports this by itself where ``PYTHONPATH`` names the folder. The kernel's clock stays as it
is, and so do the clocks that only go forward.
"""

import contextlib
import os
import time
from pathlib import Path


def shift(path: Path) -> None:
    """Replace ``time.time``; the file is read again after a second."""
    true, steady = time.time, time.monotonic
    state = [float("-inf"), 0.0]

    def shifted() -> float:
        if steady() - state[0] > 1:
            state[0] = steady()
            with contextlib.suppress(OSError, ValueError):  # it is just being written
                state[1] = float(path.read_text())
        return true() + state[1]

    # Pickled by its name, as what it replaces is.
    shifted.__module__, shifted.__name__, shifted.__qualname__ = "time", "time", "time"
    time.time = shifted


if file := os.environ.get("EDIFFI_TEST_CLOCK"):
    shift(Path(file))
