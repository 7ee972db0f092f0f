"""Stop requests to a driver: SIGTERM, Ctrl-C, or a cancel request in the store."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Catches the first stop request; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The first signal caught."""

        self.cancelled: str | None = None
        """Who cancelled the run; see :mod:`pipelines.executor.cancel`."""

        self.previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        self.previous_handlers = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """Install the signal handlers; call again after something else has replaced them."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    @property
    def why(self) -> str | None:
        """Why to stop, in words; None to go on."""
        if self.cancelled:
            return f"cancelled by {self.cancelled}"
        return f"the driver received {self.signal.name}" if self.signal else None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
