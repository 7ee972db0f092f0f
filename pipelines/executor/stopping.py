"""A driver that is told to stop: by SIGTERM, by Ctrl-C, or by a word in the store."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Holds the first word to stop; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.cancelled: str | None = None
        """By whom; see :mod:`pipelines.executor.cancel`."""

        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        self.before = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """Takes the signals; again, after something else took them."""
        for number in SIGNALS:
            signal.signal(number, self._heard)

    @property
    def why(self) -> str | None:
        """In words; None to go on."""
        if self.cancelled:
            return f"cancelled by {self.cancelled}"
        return f"the driver got {self.signal.name}" if self.signal else None

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
