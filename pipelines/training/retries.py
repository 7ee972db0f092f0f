"""What went wrong with a training node, and whether to go on from its last checkpoint.

A failure is of a kind, and each kind has its own budget: what passes by itself is tried again, ever
later; what does not is given up. A checkpoint that was committed since fills all budgets again.
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
from pipelines.store.remote import StorageError, is_transient
from pipelines.training.preemption import Preempted, Stalled, told

LOOK_EVERY_S = 1.0

T = TypeVar("T")


class Kind(StrEnum):
    """Kinds of failure: of several ranks' errors, the first of these explains the others."""

    MISTAKE = "mistake"
    """The user's: not tried again."""

    PREEMPTION = "preemption"
    """A worker, its node or what drives it was taken away."""

    MACHINES = "waits for machines"
    """There were none for all workers, for as long as Ray Train waits at a time."""

    MEMORY = "out of memory"
    """The node's, so that Ray ended a worker."""

    STORAGE = "storage or network"

    STALLED = "stalled"
    """A rank did not join the others in time."""

    BUG = "bug"
    """Anything else; twice the same at the same place will be the same for ever."""


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """How often a node is tried again without a new checkpoint, and after which time."""

    preemptions: int = 8
    machines: int = 120
    failures: int = 3
    bugs: int = 1
    backoff_s: float = 1.0
    backoff_max_s: float = 60.0

    def of(self, kind: Kind) -> tuple[str, int]:
        """The budget that pays for a kind: its name and size."""
        name = {
            Kind.PREEMPTION: "preemptions",
            Kind.MACHINES: "machines",
            Kind.BUG: "bugs",
            Kind.MISTAKE: "",
        }
        budget = name.get(kind, "failures")
        return budget, getattr(self, budget) if budget else 0


@dataclass(frozen=True)
class Failure:
    kind: Kind
    cause: BaseException
    rank: int | None = None
    """Of the worker; None for what drives the workers."""

    def __str__(self) -> str:
        who = "the node's control" if self.rank is None else f"rank {self.rank}"
        return f"{who}: {words(self.cause)}"


class GaveUp(RuntimeError):
    """A node failed for good; its last line says how, how often and why."""


def classify(error: BaseException) -> Kind:
    """The kind of what a training raised."""
    return diagnose(error).kind


def diagnose(error: BaseException) -> Failure:
    """Of what a training raised, the error that explains the others.

    Of one kind, a rank's own death explains that another one lost its connection to it.
    """
    order = list(Kind)

    def explains(failure: Failure) -> tuple[int, bool, int]:
        lost_another = _says(failure.cause, _PEER_LOST)
        return order.index(failure.kind), lost_another, failure.rank or 0

    return min(_found(error, None), key=explains)


def _found(error: BaseException, rank: int | None) -> Iterator[Failure]:
    """Every failure in what Ray Train wraps around them."""
    if ranks := getattr(error, "worker_failures", None):
        for number, inner in ranks.items():
            yield from _found(inner, number)
        return
    for wrapper in ("controller_failure", "health_check_failure", "cause"):
        if isinstance(inner := getattr(error, wrapper, None), BaseException):
            yield from _found(inner, rank)
            return
    yield Failure(_kind(error), error, rank)


def _kind(error: BaseException) -> Kind:
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
        return Kind.MISTAKE
    if (isinstance(error, lost) and not init_failed) or _says(error, _PEER_LOST):
        return Kind.PREEMPTION
    if isinstance(error, trains.WorkerGroupStartupTimeoutError):
        return Kind.MACHINES
    if isinstance(error, rays.OutOfMemoryError):
        return Kind.MEMORY
    timeouts = Stalled, trains.WorkerHealthCheckTimeoutError, trains.CollectiveTimeoutError
    if isinstance(error, timeouts) or _says(error, _TIMED_OUT):
        return Kind.STALLED
    if isinstance(error, StorageError) or is_transient(error):
        return Kind.STORAGE
    return Kind.BUG


_PEER_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "remote process exited",
)
_TIMED_OUT = ("Timed out", "timed out", "wait timeout")


def _says(error: BaseException, texts: tuple[str, ...]) -> bool:
    """Whether a collective ended so: gloo's and NCCL's errors differ in nothing but their words."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def words(error: BaseException) -> str:
    """An error in one line; Ray's own reports of a death are long."""
    from ray.exceptions import RayActorError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    if isinstance(error, Preempted | Stalled):
        return str(error)
    if isinstance(error, WorkerGroupStartupTimeoutError):
        return f"the cluster has no room for {error.num_workers} such workers yet"
    if isinstance(error, RayActorError) and not error.actor_init_failed:
        return "its node was taken away" if error.preempted else "its process died"
    if said := next((text for text in _PEER_LOST if _says(error, (text,))), None):
        return f"lost another rank ({said})"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class Retries:
    """Keeps count of a node's failures, and says whether it is tried again."""

    def __init__(self, budgets: Budgets) -> None:
        self.budgets = budgets
        self.images = -1
        self.last: tuple[str, str] | None = None
        self.spent: Counter[str] = Counter()

    def after(self, failure: Failure, images: int) -> tuple[float, str] | None:
        """Seconds to wait, and the attempt in words; None to give up.

        Args:
            images: that the newest checkpoint has seen; more than at the last failure is progress.
        """
        seen = type(failure.cause).__name__, str(failure.cause)
        if images > self.images:
            self.images, self.last = images, None
            self.spent.clear()
        again, self.last = seen == self.last, seen
        budget, size = self.budgets.of(failure.kind)
        self.spent[budget] += 1
        tries = self.spent[budget]
        if tries > size or (again and failure.kind is Kind.BUG):
            return None
        # For machines it has waited already, so it need not wait longer each time.
        doublings = 0 if failure.kind is Kind.MACHINES else tries - 1
        wait = min(self.budgets.backoff_s * 2.0**doublings, self.budgets.backoff_max_s)
        return wait * random.uniform(0.5, 1.0), f"attempt {tries} of {size}"

    @property
    def tries(self) -> int:
        """Since the last progress, whatever they failed of."""
        return self.spent.total()


def until_done(attempt: Callable[[], T], ctx: Context) -> T:
    """Calls it until it returns; → what it returned.

    Raises:
        ValueError: The user's mistake, as it was raised in a worker.
        StorageError: The storage failed, and too often.
        Preempted: The driver was told to stop.
        GaveUp: Anything else failed too often.
    """
    retries = Retries(Budgets(**ctx.runtime["workers"]["retries"]))
    while True:
        try:
            return attempt()
        except Exception as error:  # there is no kind of error that is not judged
            failure = diagnose(error)
            leave_if_told(ctx, error)
            images = committed(ctx)
            decision = retries.after(failure, images)
            if decision is None:
                raise ended(failure, retries.tries) from error
            wait_s, which = decision
            ctx.report(
                message=f"{failure} ({failure.kind}); goes on from {images:,} images in "
                f"{wait_s:.1f} s, {which}"
            )
            pause(ctx, wait_s, error)


def committed(ctx: Context) -> int:
    """Images of the newest checkpoint; 0 too if the storage is away, which is no progress."""
    try:
        word: Mapping[str, Any] | None = ctx.store.read_json(f"{ctx.folder}/progress.json")
    except OSError:
        return 0
    return int(word["done"]) if word else 0


def leave_if_told(ctx: Context, error: BaseException) -> None:
    if reason := told(ctx.board, ctx.node):
        raise Preempted(reason) from error


def pause(ctx: Context, wait_s: float, error: BaseException) -> None:
    """Waits, but not for longer than the driver may."""
    until = time.monotonic() + wait_s
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, LOOK_EVERY_S))
        leave_if_told(ctx, error)


def ended(failure: Failure, tries: int) -> Exception:
    """What a node that is given up fails with; the kind decides the command's exit code."""
    if failure.kind is Kind.MISTAKE:
        return ValueError(str(failure.cause))
    how = f"{failure} ({failure.kind}, {tries} {'try' if tries == 1 else 'tries'})"
    return StorageError(how) if isinstance(failure.cause, StorageError) else GaveUp(how)
