"""Retries of a training node: classifies failures and resumes from the last checkpoint.

Every kind of failure draws on a budget of retries, with growing waits. A newly committed checkpoint
refills all budgets. The user's mistakes are not retried.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from pipelines.runs.context import Context
from pipelines.store.fenced import OwnerChanged
from pipelines.store.remote import StorageError, is_environmental, is_transient, remedy
from pipelines.training.preemption import Preempted, Stalled, driver_stop_reason

POLL_INTERVAL_S = 1.0

T = TypeVar("T")


class FailureKind(StrEnum):
    """Kinds of failure. When ranks fail differently, the kind listed first is the cause."""

    TAKEN_OVER = "taken over"
    """Another driver trains the node now: not retried."""

    MISTAKE = "mistake"
    """The user's: not retried."""

    PREEMPTION = "preemption"
    """A worker, its machine or the training controller was lost."""

    MACHINES = "waiting for machines"
    """Ray Train timed out waiting for resources for all workers."""

    MEMORY = "out of memory"
    """The machine ran out of memory, and Ray killed a worker."""

    STORAGE = "storage, network or disk"

    STALLED = "stalled"
    """A rank did not join a collective in time."""

    BUG = "bug"
    """Anything else; the same error twice without progress is not retried."""


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """How often a node is retried without a new checkpoint, and how long it waits before."""

    preemptions: int = 8
    machines: int = 120
    failures: int = 3
    bugs: int = 1
    backoff_s: float = 1.0
    """Seconds before the first retry; doubled at every further one."""

    backoff_max_s: float = 60.0

    def of(self, kind: FailureKind) -> tuple[str, int]:
        """Name and size of the budget that a kind draws on."""
        name = {
            FailureKind.PREEMPTION: "preemptions",
            FailureKind.MACHINES: "machines",
            FailureKind.BUG: "bugs",
            FailureKind.TAKEN_OVER: "",
            FailureKind.MISTAKE: "",
        }
        budget = name.get(kind, "failures")
        return budget, getattr(self, budget) if budget else 0


@dataclass(frozen=True)
class Failure:
    """A classified error of one rank."""

    kind: FailureKind
    cause: BaseException
    rank: int | None = None
    """Rank of the worker; None if Ray did not say, or if it was Ray Train's controller."""

    def __str__(self) -> str:
        who = "training" if self.rank is None else f"rank {self.rank}"
        return f"{who}: {one_line(self.cause)}"


class GaveUp(RuntimeError):
    """A node failed after its last retry; the message names rank, error, kind and tries."""


def classify(error: BaseException) -> FailureKind:
    """The kind of failure behind an error that training raised."""
    return diagnose(error).kind


def diagnose(error: BaseException) -> Failure:
    """The root cause among the errors of all ranks.

    Within one kind, the death of a rank comes before another rank's lost connection to it, and an
    error of a disk before the StorageError that tells the other ranks of it.
    """
    order = list(FailureKind)

    def explains(failure: Failure) -> tuple[int, bool, int]:
        secondhand = _mentions(failure.cause, _PEER_LOST) or isinstance(failure.cause, StorageError)
        return order.index(failure.kind), secondhand, failure.rank or 0

    return min(_failures_in(error, None), key=explains)


def _failures_in(error: BaseException, rank: int | None) -> Iterator[Failure]:
    """Every failure inside Ray Train's wrapper errors."""
    if ranks := getattr(error, "worker_failures", None):
        for number, inner in ranks.items():
            yield from _failures_in(inner, number)
        return
    for wrapper in ("controller_failure", "health_check_failure", "cause"):
        if isinstance(inner := getattr(error, wrapper, None), BaseException):
            yield from _failures_in(inner, rank)
            return
    yield Failure(_kind_of(error), error, rank)


def _kind_of(error: BaseException) -> FailureKind:
    from ray import exceptions as rays
    from ray.train import PreemptionError
    from ray.train.v2._internal import exceptions as trains

    init_failed = isinstance(error, rays.RayActorError) and error.actor_init_failed
    lost = (
        Preempted,
        PreemptionError,
        rays.RayActorError,
        rays.WorkerCrashedError,
        rays.LocalRayletDiedError,
        rays.NodeDiedError,
        rays.ObjectLostError,
        trains.WorkerGroupStartupFailedError,
    )
    if isinstance(error, ValueError | trains.InsufficientClusterResourcesError):
        return FailureKind.MISTAKE
    if isinstance(error, OwnerChanged):
        return FailureKind.TAKEN_OVER
    if (isinstance(error, lost) and not init_failed) or _mentions(error, _PEER_LOST):
        return FailureKind.PREEMPTION
    if isinstance(error, trains.WorkerGroupStartupTimeoutError):
        return FailureKind.MACHINES
    if isinstance(error, rays.OutOfMemoryError):
        return FailureKind.MEMORY
    timeouts = Stalled, trains.WorkerHealthCheckTimeoutError, trains.CollectiveTimeoutError
    if isinstance(error, timeouts) or _mentions(error, _TIMED_OUT):
        return FailureKind.STALLED
    if is_transient(error) or (isinstance(error, OSError) and is_environmental(error)):
        return FailureKind.STORAGE
    return FailureKind.BUG


_PEER_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "remote process exited",
)
_TIMED_OUT = ("Timed out", "timed out", "wait timeout")


def _mentions(error: BaseException, texts: tuple[str, ...]) -> bool:
    """Whether a collective's error has any of the texts: gloo and NCCL have no error classes."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def one_line(error: BaseException) -> str:
    """An error in one line; Ray's own messages are long."""
    from ray.exceptions import RayActorError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    if isinstance(error, Preempted | Stalled):
        return str(error)
    if isinstance(error, WorkerGroupStartupTimeoutError):
        return f"the cluster has no room for {error.num_workers} such workers yet"
    if isinstance(error, RayActorError) and not error.actor_init_failed:
        return "its machine was preempted" if error.preempted else "its process died"
    if text := next((text for text in _PEER_LOST if _mentions(error, (text,))), None):
        return f"lost connection to another rank ({text})"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class Retries:
    """Counts a node's failures and decides whether to retry."""

    def __init__(self, budgets: Budgets) -> None:
        self.budgets = budgets
        self.images = -1
        self.last: tuple[str, str] | None = None
        self.spent: Counter[str] = Counter()

    def after(self, failure: Failure, images: int) -> tuple[float, str] | None:
        """Seconds to wait and a label such as ``attempt 1 of 3``; None to give up.

        Args:
            images: images seen by the newest checkpoint; an increase counts as progress.
        """
        this = type(failure.cause).__name__, str(failure.cause)
        if images > self.images:
            self.images, self.last = images, None
            self.spent.clear()
        repeated, self.last = this == self.last, this
        budget, size = self.budgets.of(failure.kind)
        self.spent[budget] += 1
        tries = self.spent[budget]
        if tries > size or (repeated and failure.kind is FailureKind.BUG):
            return None
        # Ray Train has already waited for machines, so this wait need not grow.
        doublings = 0 if failure.kind is FailureKind.MACHINES else tries - 1
        wait = min(self.budgets.backoff_s * 2.0**doublings, self.budgets.backoff_max_s)
        return wait * random.uniform(0.5, 1.0), f"attempt {tries} of {size}"

    @property
    def tries(self) -> int:
        """Failures of any kind since the last progress."""
        return self.spent.total()


def run_with_retries(attempt: Callable[[], T], ctx: Context) -> T:
    """Call ``attempt`` until it returns, and return its result.

    Args:
        attempt: trains the node once, resuming from its newest checkpoint.

    Raises:
        ValueError: The user's mistake, as raised in a worker.
        StorageError: The storage failed too often.
        OwnerChanged: Another driver has taken the node over.
        Preempted: The driver was asked to stop.
        GaveUp: Training failed too often for any other reason.
    """
    retries = Retries(Budgets(**ctx.runtime["workers"]["retries"]))
    while True:
        try:
            return attempt()
        except Exception as error:  # every error is classified
            failure = diagnose(error)
            raise_if_stopping(ctx, error)
            images = committed_images(ctx)
            decision = retries.after(failure, images)
            if decision is None:
                raise final_error(failure, retries.tries) from error
            wait_s, label = decision
            ctx.report(
                at_work=False,
                message=f"{failure} ({failure.kind}); retrying from {images:,} images in "
                f"{wait_s:.1f} s, {label}",
            )
            pause(ctx, wait_s, error)


def committed_images(ctx: Context) -> int:
    """Images of the newest checkpoint; 0 without one, or while the storage is unreachable."""
    try:
        progress: Mapping[str, Any] | None = ctx.store.read_json(f"{ctx.folder}/progress.json")
    except OSError:
        return 0
    return int(progress["done"]) if progress else 0


def raise_if_stopping(ctx: Context, error: BaseException) -> None:
    """Raise Preempted, caused by ``error``, if the driver wants its workers to stop."""
    if reason := driver_stop_reason(ctx.board, ctx.node):
        raise Preempted(reason) from error


def pause(ctx: Context, wait_s: float, error: BaseException) -> None:
    """Wait, unless the driver wants to stop: then raise Preempted."""
    until = time.monotonic() + wait_s
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, POLL_INTERVAL_S))
        raise_if_stopping(ctx, error)


def final_error(failure: Failure, tries: int) -> Exception:
    """The error of a node that is given up; its type decides the command's exit code."""
    if failure.kind is FailureKind.MISTAKE:
        return ValueError(str(failure.cause))
    if failure.kind is FailureKind.TAKEN_OVER:
        return OwnerChanged(str(failure.cause))
    message = f"{failure} ({failure.kind}, {tries} {'try' if tries == 1 else 'tries'})"
    if todo := remedy(failure.cause):
        message += f"; {todo}, and run again: training continues from its newest checkpoint"
    return StorageError(message) if isinstance(failure.cause, StorageError) else GaveUp(message)
