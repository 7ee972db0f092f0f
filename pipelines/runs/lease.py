"""Per-pipeline leases: only one driver runs a pipeline at a time, on disk and in a bucket.

A lease is a record in the store that names its driver, which renews it every few seconds. A driver
counts as alive while others see its record change, each by a clock of its own: no two machines'
clocks are ever compared. On disk the driver also holds a file lock, which ends with its process, so
a driver of the same machine is known to be dead at once. A driver that could not renew for too long
(its machine was suspended, say) may have lost its lease; what it writes then is refused
(:mod:`pipelines.store.fenced`).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pipelines.formatting import clock
from pipelines.runs.threads import in_thread
from pipelines.store import lock
from pipelines.store.age import age_s
from pipelines.store.artifacts import Store
from pipelines.store.compare_and_swap import Snapshot, compare_and_swap, read_snapshot
from pipelines.store.fenced import FencedStore, OwnerChanged
from pipelines.store.machine import is_running, machine_id, pid_namespace

T = TypeVar("T")

RENEW_EVERY_S = 10.0
STALE_S = 60.0
"""A driver whose record has not changed for this long counts as dead."""

RENEWAL_TRIES = 10
"""How often a renewal is repeated that another thread's has overtaken."""

HANGING_RENEWALS = 3
"""A renewal that hangs does not hold up the next; but no more than these are under way at once."""


class LeaseLost(OwnerChanged):
    """Another driver took over the pipeline; this one must not write any more."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The driver that holds a lease, as the record names it."""

    owner: str
    """Unique id of the driver."""

    host: str
    process: int
    """Process id on the host."""

    attempt: int
    """Counts the drivers that have held the lease, this one included."""

    since: str
    """When it acquired the lease, ISO 8601 in UTC."""

    beat: float
    """When it last renewed the lease: seconds since 1970, by its own clock."""

    released: bool = False

    renewals: int = 0
    """Changes with every renewal, even if the clock stands still."""

    machine: str = ""
    """As of :func:`machine_id`; empty in records of earlier releases, as is ``namespace``."""

    namespace: str = ""
    """PID namespace that ``process`` is an id in."""

    @property
    def age_s(self) -> float:
        """Seconds since the last renewal if the two clocks agree: for people, never to decide."""
        return max(0.0, time.time() - self.beat)

    def __str__(self) -> str:
        return f"{self.host}, process {self.process}, last heartbeat {clock(self.age_s)} ago"


def path_of(pipeline: str) -> str:
    """Path of a pipeline's lease in the store."""
    return f"leases/{pipeline}.json"


def parse(data: bytes | None) -> Holder | None:
    """The holder in a record; None if there is no record or it is damaged."""
    return parse_as(Holder, data)


def parse_as(kind: type[T], data: bytes | None) -> T | None:
    """A record as a dataclass, without what a later release may have added.

    Returns:
        None if there is no record or it is damaged.
    """
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    try:
        return kind(**{k: v for k, v in json.loads(data).items() if k in known}) if data else None
    except (ValueError, TypeError, AttributeError):
        return None


def holder_of(store: Store, pipeline: str) -> Holder | None:
    """The last driver that held a pipeline's lease, alive or not."""
    return parse(store.read(path_of(pipeline)))


def is_driven(store: Store, pipeline: str) -> bool:
    """Whether a live driver runs the pipeline: one that has the lock, or that renews.

    How long ago it renewed is told by the store's clock.
    """
    if store.is_local and lock.is_held(_lock_file(store, pipeline)):
        return True
    holder = holder_of(store, pipeline)
    if holder is None or holder.released or is_gone(store, holder):
        return False
    silent_s = age_s(store, path_of(pipeline))
    return silent_s is None or silent_s <= STALE_S


class HeartbeatMonitor:
    """Watches whether drivers keep renewing their leases, by this machine's clock."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self._seen: dict[str, tuple[Holder, float]] = {}

    def time_left_s(self, holder: Holder) -> float:
        """Seconds until a driver counts as dead if it does not renew; 0 if it is dead."""
        last, since = self._seen.get(holder.owner, (None, 0.0))
        if last != holder:
            since = self.now()
            self._seen[holder.owner] = (holder, since)
        return max(0.0, since + STALE_S - self.now())

    def has_renewed(self, holder: Holder) -> bool:
        """Whether a driver has renewed since it was last seen here."""
        before = self._seen.get(holder.owner)
        return before is not None and before[0] != holder

    def is_dead(self, store: Store, pipeline: str, holder: Holder) -> bool:
        """Whether a driver that was found in a pipeline's record is certainly dead."""
        if store.is_local and lock.is_held(_lock_file(store, pipeline)):
            return False
        return is_gone(store, holder) or not self.time_left_s(holder)


class Lease:
    """This process's lease on a pipeline, renewed by a thread."""

    def __init__(self, store: Store, path: str, holder: Holder) -> None:
        self.store, self.path, self.holder = store, path, holder
        self.lost: Holder | None = None
        """The driver that took over; None while the lease is this driver's."""

        self.renewed_at = suspend_aware_clock()
        """When the renewal was begun that succeeded last."""

        self._renewals = itertools.count(holder.renewals + 1)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew_repeatedly, name="lease", daemon=True)

    @property
    def owner(self) -> str:
        """Unique id of this driver."""
        return self.holder.owner

    def start(self) -> None:
        """Start the thread that renews the lease."""
        self._thread.start()

    def check(self) -> None:
        """Renew the lease now.

        Raises:
            LeaseLost: Another driver has taken over.
        """
        if not self.lost:
            self.renew()
        if self.lost:
            raise LeaseLost(taken_over(self.lost))

    @property
    def is_overdue(self) -> bool:
        """Whether the lease is lost, or its renewal so late that another may have taken it over."""
        late_s = suspend_aware_clock() - self.renewed_at
        return self.lost is not None or late_s > 3 * RENEW_EVERY_S

    def check_if_overdue(self) -> None:
        """Like :meth:`check`, but only if the last renewal is overdue."""
        if self.is_overdue:
            self.check()

    def fenced(self, folder: str) -> FencedStore:
        """The store, with writes below a folder allowed to the pipeline's driver alone."""
        return LeasedStore(root=self.store.root, folder=folder, record=self.path, owner=self.owner)

    def renew(self, released: bool = False) -> None:
        """Write the record again; sets :attr:`lost` if another driver has taken over.

        Renewals may overlap: one that another has overtaken is repeated.
        """
        for _ in range(RENEWAL_TRIES):
            began, over = suspend_aware_clock(), self._over.is_set()
            seen = read_snapshot(self.store, self.path)
            there = parse(seen.data)
            if there is not None and there.owner != self.owner:
                self.lost = there
                return
            if over and not released:
                return
            mine = replace(
                self.holder, beat=time.time(), renewals=next(self._renewals), released=released
            )
            if compare_and_swap(self.store, self.path, seen, serialize(mine)):
                self.holder, self.renewed_at = mine, max(began, self.renewed_at)
                return
        raise ConnectionError(f"{self.store.full(self.path)} cannot be swapped; try again")

    def _renew_repeatedly(self) -> None:
        pending: list[Future[None]] = []
        while not self._over.wait(RENEW_EVERY_S) and not self.lost:
            for future in (f for f in pending if f.done()):
                # An unreachable store does not stop the work; what writes will wait for it.
                with contextlib.suppress(OSError):
                    future.result()
            pending = [future for future in pending if not future.done()]
            if len(pending) < HANGING_RENEWALS:
                pending.append(in_thread(self.renew))

    def release(self) -> None:
        """Stop renewing, and mark the lease as free."""
        self._over.set()
        if not self.lost:
            with contextlib.suppress(OSError):  # an unreachable bucket: the record goes stale
                self.renew(released=True)


@dataclass(frozen=True)
class LeasedStore(FencedStore):
    """A store that only a pipeline's driver may write."""

    def check(self, path: str = "") -> None:
        """Check that this driver still has the lease; LeaseLost if it has not."""
        try:
            super().check(path)
        except OwnerChanged:
            by = parse(self.read(self.record))
            raise LeaseLost(taken_over(by)) from None


def taken_over(by: Holder | None) -> str:
    """The message of a driver that has lost its lease."""
    return (
        f"another driver has taken over ({by or 'unknown'}): this one did not renew its lease in "
        "time"
    )


def suspend_aware_clock() -> float:
    """Seconds; unlike the monotonic clock's, they go on while a machine is suspended."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)  # Linux's
    return time.monotonic() if boot is None else time.clock_gettime(boot)


def serialize(holder: Holder) -> bytes:
    """The record of a holder."""
    return json.dumps(asdict(holder), indent=1).encode()


@contextlib.contextmanager
def only_driver(
    store: Store, pipeline: str, log: Callable[[str], None] = lambda _: None
) -> Iterator[Lease]:
    """Hold a pipeline's lease while the context is open.

    Args:
        log: receives lines for the user while the lease is acquired.

    Raises:
        ValueError: Another driver runs the pipeline.
    """
    with _locked(store, pipeline) if store.is_local else contextlib.nullcontext():
        lease = acquire(store, pipeline, log)
        lease.start()
        try:
            yield lease
        finally:
            lease.release()


def acquire(
    store: Store,
    pipeline: str,
    log: Callable[[str], None] = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> Lease:
    """Acquire a pipeline's lease, if it is free or its driver is certainly dead.

    On disk the caller must hold the lock; then any other holder on this machine is dead.

    Args:
        log: receives lines for the user.
        sleep: waits for so many seconds.
        now: clock, in seconds.

    Raises:
        ValueError: Another driver runs the pipeline.
    """
    monitor, path, logged = HeartbeatMonitor(now), path_of(pipeline), False
    while True:
        seen = read_snapshot(store, path)
        holder = parse(seen.data)
        rival = holder if holder and not holder.released else None
        if rival and monitor.has_renewed(rival):
            raise already_running(pipeline, rival)
        if rival and not is_gone(store, rival) and (left := monitor.time_left_s(rival)):
            if not logged:
                log(f"pipeline {pipeline} has a driver ({rival}); checking whether it is alive")
                logged = True
            sleep(min(1.0, left))
            continue
        if mine := _try_acquire(store, path, seen, holder):
            if rival:
                log(f"taking over from the previous driver ({rival}), which is dead")
            return Lease(store, path, mine)


def _try_acquire(store: Store, path: str, seen: Snapshot, before: Holder | None) -> Holder | None:
    """Write this process into the record; None if another was faster."""
    host, process = socket.gethostname(), os.getpid()
    mine = Holder(
        owner=f"{host}.{process}.{uuid.uuid4().hex[:8]}",
        host=host,
        process=process,
        attempt=1 + (before.attempt if before else 0),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        beat=time.time(),
        machine=machine_id(),
        namespace=pid_namespace(),
    )
    return mine if compare_and_swap(store, path, seen, serialize(mine)) else None


def already_running(pipeline: str, holder: Holder | None) -> ValueError:
    """The error for a pipeline that another driver runs."""
    by = f" ({holder})" if holder else ""
    return ValueError(
        f"pipeline {pipeline} is already running{by}; watch it with `ediffi status`, or stop it "
        "with `ediffi cancel`"
    )


def is_gone(store: Store, holder: Holder) -> bool:
    """Whether a driver ran on this machine and its process has certainly ended.

    On disk nobody holds the pipeline's lock, or the caller does.
    """
    if store.is_local and not holder.machine:  # an earlier release's
        return holder.host == socket.gethostname()
    if holder.machine != machine_id():
        return False
    # The lock ends with its process, in whatever container; an id holds in its namespace only.
    here = holder.namespace == pid_namespace() != ""
    return store.is_local or (here and not is_running(holder.process))


# -- on disk ---------------------------------------------------------------------------------


def _lock_file(store: Store, pipeline: str) -> Path:
    return Path(store.full(f"leases/.{pipeline}.lock"))


@contextlib.contextmanager
def _locked(store: Store, pipeline: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.held(_lock_file(store, pipeline)))
        except BlockingIOError:
            raise already_running(pipeline, holder_of(store, pipeline)) from None
        yield
