"""Messages from the thread that draws to the coroutine that reads an order's events."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.serving.errors import Refused
from pipelines.serving.events import Event, Finished, Step

if TYPE_CHECKING:
    from pipelines.models.watch import Pictures

ROOM = 64
"""Steps that wait for a slow reader, at most."""


@dataclass(frozen=True)
class Drawn:
    """An event whose picture is not encoded yet; whoever reads it does that."""

    event: Step | Finished
    pixels: Pictures
    """uint8 [R, R, 3]."""


Message = Event | Drawn | Refused
"""``Refused``: the failure of one picture."""


class Mailbox:
    """A queue that never blocks who writes: beyond :data:`ROOM`, the oldest steps are dropped."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """
        Args:
            loop: the event loop of who reads.
        """
        self._loop, self._lock = loop, threading.Lock()
        self._messages: deque[Message] = deque()
        self._arrived = asyncio.Event()

    def post(self, message: Message) -> None:
        """Add a message, from any thread."""
        with self._lock:
            self._messages.append(message)
            steps = [m for m in self._messages if _is_step(m)]
            if len(steps) > ROOM:
                self._messages.remove(steps[0])
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the reader with it
            self._loop.call_soon_threadsafe(self._arrived.set)

    async def get(self, until: float) -> Message:
        """The next message.

        Args:
            until: time of :func:`time.monotonic` until which to wait for one.

        Raises:
            TimeoutError: None has come.
        """
        while True:
            self._arrived.clear()
            with self._lock:
                if self._messages:
                    return self._messages.popleft()
            await asyncio.wait_for(self._arrived.wait(), until - time.monotonic())


def _is_step(message: Message) -> bool:
    return isinstance(message.event if isinstance(message, Drawn) else message, Step)
