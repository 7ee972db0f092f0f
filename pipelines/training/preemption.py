"""Stop requests: why and how a training worker is asked to save its state and exit.

There are three sources: a SIGTERM to the worker's process, a machine that Ray is about to drain,
and a driver that is stopping. The first request becomes the reported reason.
"""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any

POLL_INTERVAL_S = 0.5
BOARD_TIMEOUT_S = 5.0

_reasons: list[str] = []
"""Requests to this process, whatever it trains."""


@dataclass
class _Job:
    """What this process trains now, and the driver's request to stop it."""

    board: Any = None
    node: str = ""
    stop_reason: str | None = None


_job = _Job()


class Preempted(RuntimeError):
    """A worker saved its state and exited on request; the message holds the reason."""


class Stalled(RuntimeError):
    """A collective timed out; the message names the rank that did not respond."""


def request_stop(reason: str) -> None:
    """Ask the training loop of this process to save its state and exit."""
    _reasons.append(reason)


def stop_reason() -> str | None:
    """Why this worker should save and exit, or None. Cheap enough to call at every step."""
    return _reasons[0] if _reasons else _job.stop_reason


def follow(board: Any, node: str = "") -> None:
    """Heed the driver's requests to stop this node from now on, and forget those to another.

    Args:
        board: the actor through which the driver asks workers to stop; None to ask nobody.
    """
    global _job
    _job = _Job(board, node)


def watch(board: Any = None, node: str = "") -> None:
    """Start watching for stop requests. Call it in the main thread of a Ray Train worker.

    Args:
        board: the actor through which the driver asks workers to stop. One worker per node is
            enough to poll it, because the workers agree on when to stop.
        node: id of the node that this process trains; :func:`follow` names another.
    """
    follow(board, node)
    before = signal.getsignal(signal.SIGTERM)

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)  # a second one ends the process
        request_stop("SIGTERM")

    signal.signal(signal.SIGTERM, on_sigterm)
    threading.Thread(target=_poll, name="preemption", daemon=True).start()


def driver_stop_reason(board: Any, node: str = "") -> str | None:
    """Why the driver wants its workers to stop, or None.

    An unreachable board returns None: Ray restarts it, and the driver repeats its request.
    """
    import ray

    if board is None:
        return None
    try:
        reason: str | None = ray.get(board.stop_reason.remote(node), timeout=BOARD_TIMEOUT_S)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return None
    return reason


def _poll() -> None:
    while not (reason := _drain_reason()):
        job = _job  # the answer is for this one, even if another has begun meanwhile
        job.stop_reason = job.stop_reason or driver_stop_reason(job.board, job.node)
        time.sleep(POLL_INTERVAL_S)
    request_stop(reason)


def _drain_reason() -> str | None:
    """What Ray's watcher reported; `ray.train.get_preemption_info` would wait for all ranks."""
    from ray.train.v2._internal.execution.context import get_train_context

    info = get_train_context().preemption_context.preemption_info
    return f"node of rank {info.preempted_ranks} is being drained" if info else None
