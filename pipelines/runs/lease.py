"""Per-pipeline leases: only one driver runs a pipeline at a time, on disk and in a bucket.

A lease is a record in the store that names its driver, which renews it every few seconds. On disk
the driver also holds a file lock, which ends with its process; there the lock decides. In a bucket
a driver counts as alive while its record keeps changing. A driver that could not renew for too long
(its machine was suspended, say) may have lost its lease, so it checks before it commits a result.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pipelines.formatting import clock
from pipelines.store import lock
from pipelines.store.artifacts import Store
from pipelines.store.compare_and_swap import Snapshot, compare_and_swap, read_snapshot

RENEW_EVERY_S = 10.0
STALE_S = 60.0
"""A driver that has not renewed its lease for this long counts as dead."""

CONFIRM_S = RENEW_EVERY_S + 3
"""How long to watch a record that looks stale: the two machines' clocks may differ."""


class LeaseLost(RuntimeError):
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

    @property
    def age_s(self) -> float:
        """Seconds since the last renewal, if the two clocks agree."""
        return max(0.0, time.time() - self.beat)

    def __str__(self) -> str:
        return f"{self.host}, process {self.process}, last heartbeat {clock(self.age_s)} ago"


def path_of(pipeline: str) -> str:
    """Path of a pipeline's lease in the store."""
    return f"leases/{pipeline}.json"


def parse(data: bytes | None) -> Holder | None:
    """The holder in a record; None if there is no record or it is damaged."""
    try:
        return Holder(**json.loads(data)) if data else None
    except (ValueError, TypeError):
        return None


def holder_of(store: Store, pipeline: str) -> Holder | None:
    """The last driver that held a pipeline's lease, alive or not."""
    return parse(store.read(path_of(pipeline)))


def is_driven(store: Store, pipeline: str) -> bool:
    """Whether a live driver runs the pipeline: one that has the lock or, in a bucket, renews."""
    if store.is_local:
        return lock.is_held(_lock_file(store, pipeline))
    holder = holder_of(store, pipeline)
    return holder is not None and not holder.released and holder.age_s <= STALE_S


class HeartbeatMonitor:
    """Watches whether drivers keep renewing their leases, by this machine's clock."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self._seen: dict[str, tuple[float, float, float]] = {}

    def time_left_s(self, holder: Holder) -> float:
        """Seconds until a driver counts as dead if it does not renew; 0 if it is dead."""
        beat, patience, since = self._seen.get(holder.owner, (None, 0.0, 0.0))
        if beat != holder.beat:
            patience = max(CONFIRM_S, STALE_S - holder.age_s) if beat is None else STALE_S
            since = self.now()
            self._seen[holder.owner] = (holder.beat, patience, since)
        return max(0.0, since + patience - self.now())

    def has_renewed(self, holder: Holder) -> bool:
        """Whether a driver has renewed since it was last seen here."""
        before = self._seen.get(holder.owner)
        return before is not None and before[0] != holder.beat


class Lease:
    """This process's lease on a pipeline, renewed by a thread."""

    def __init__(self, store: Store, path: str, holder: Holder) -> None:
        self.store, self.path, self.holder = store, path, holder
        self.lost: Holder | None = None
        """The driver that took over; None while the lease is this driver's."""

        self._writing = threading.Lock()
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
            raise LeaseLost(
                f"another driver has taken over ({self.lost}): this one did not renew its lease "
                "in time"
            )

    @property
    def is_overdue(self) -> bool:
        """Whether the lease is lost, or its renewal so late that another may have taken it over."""
        return self.lost is not None or self.holder.age_s > 3 * RENEW_EVERY_S

    def check_if_overdue(self) -> None:
        """Like :meth:`check`, but only if the last renewal is overdue."""
        if self.is_overdue:
            self.check()

    def renew(self, released: bool = False) -> None:
        """Write the record again; sets :attr:`lost` if another driver has taken over."""
        with self._writing:
            seen = read_snapshot(self.store, self.path)
            over = released or self._over.is_set()  # a renewal that waited for the last one
            now = replace(self.holder, beat=time.time(), released=over)
            there = parse(seen.data)
            if there is not None and there.owner != self.owner:
                self.lost = there
            elif compare_and_swap(self.store, self.path, seen, serialize(now)):
                self.holder = now
            else:
                there = parse(read_snapshot(self.store, self.path).data)
                self.lost = there if there and there.owner != self.owner else None

    def _renew_repeatedly(self) -> None:
        while not self._over.wait(RENEW_EVERY_S) and not self.lost:
            # An unreachable store does not stop the work; the next commit will fail on it.
            with contextlib.suppress(OSError):
                self.renew()

    def release(self) -> None:
        """Stop renewing, and mark the lease as free."""
        self._over.set()
        if not self.lost:
            with contextlib.suppress(OSError):  # an unreachable bucket: the record goes stale
                self.renew(released=True)


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

    On disk the caller must hold the lock; then any other holder is dead.

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
        rival = holder if holder and not holder.released and not store.is_local else None
        if rival and monitor.has_renewed(rival):
            raise already_running(pipeline, rival)
        if rival and not is_dead_here(rival) and (left := monitor.time_left_s(rival)):
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
    )
    return mine if compare_and_swap(store, path, seen, serialize(mine)) else None


def already_running(pipeline: str, holder: Holder | None) -> ValueError:
    """The error for a pipeline that another driver runs."""
    by = f" ({holder})" if holder else ""
    return ValueError(
        f"pipeline {pipeline} is already running{by}; watch it with `ediffi status`, or stop it "
        "with `ediffi cancel`"
    )


def is_dead_here(holder: Holder) -> bool:
    """Whether the driver ran on this machine and its process has ended."""
    if holder.host != socket.gethostname():
        return False
    try:
        os.kill(holder.process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


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
