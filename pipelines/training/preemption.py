"""Word that this worker shall save its state and leave.

It comes in three ways: a SIGTERM to the worker's process, a node that Ray is going to take away,
and the driver, which was told to stop. Whatever came first is the reason that is given.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

LOOK_EVERY_S = 0.5
BOARD_PATIENCE_S = 5.0

_reasons: list[str] = []


class Preempted(RuntimeError):
    """A worker has saved its state and left, as it was asked to; the message says why."""


class Stalled(RuntimeError):
    """A collective did not come about in time; the message names the rank that was waited for."""


def ask(reason: str) -> None:
    """Asks the training loop of this process to save and leave."""
    _reasons.append(reason)


def asked() -> str | None:
    """Why this worker shall save and leave, or None. Costs nothing: a loop asks at every step."""
    return _reasons[0] if _reasons else None


def listen(board: Any = None, node: str = "") -> None:
    """Has this process hear of it; to be called in the main thread of a Ray Train worker.

    Args:
        board: the actor that the driver leaves word with; only one worker of a node needs to look,
            as the workers of a node agree on leaving.
        node: that this process works on.
    """
    before = signal.getsignal(signal.SIGTERM)

    def heard(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)  # a second one ends the process
        ask("SIGTERM")

    signal.signal(signal.SIGTERM, heard)
    threading.Thread(target=_look, args=(board, node), name="notice", daemon=True).start()


def told(board: Any, node: str = "") -> str | None:
    """What the driver says to its workers: why to leave, or nothing.

    A board that is away is being started again, and will be told again.
    """
    import ray

    if board is None:
        return None
    try:
        word: str | None = ray.get(board.stop_reason.remote(node), timeout=BOARD_PATIENCE_S)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return None
    return word


def _look(board: Any, node: str) -> None:
    while not (reason := _drained() or told(board, node)):
        time.sleep(LOOK_EVERY_S)
    ask(reason)


def _drained() -> str | None:
    """What Ray's watcher told this worker; `ray.train.get_preemption_info` waits for all ranks."""
    from ray.train.v2._internal.execution.context import get_train_context

    info = get_train_context().preemption_context.preemption_info
    return f"node of rank {info.preempted_ranks} is being drained" if info else None
