"""One driver of a pipeline at a time, on disk and in a bucket.

A driver holds a lease: a record in the store that names it, and that it writes anew every few
seconds for as long as it lives. On disk it also holds a lock, which ends with its process and is
what counts; in a bucket it lives for as long as its record changes. A driver that was silent for
too long, as after a pause of its machine, may have lost its lease: it checks before it commits.
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

BEAT_S = 10.0
STALE_S = 60.0
CONFIRM_S = BEAT_S + 3
"""How long a record that seems stale is watched: clocks of two machines need not agree."""


class LeaseLost(RuntimeError):
    """Another driver took over; this one must not write any more."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who drives a pipeline, as the record says."""

    owner: str
    host: str
    process: int
    attempt: int
    """How many drivers held the lease up to this one."""

    since: str
    beat: float
    """Seconds since 1970, by its own clock."""

    released: bool = False

    @property
    def age_s(self) -> float:
        return max(0.0, time.time() - self.beat)

    def __str__(self) -> str:
        return f"{self.host}, process {self.process}, heard of {clock(self.age_s)} ago"


def path_of(pipeline: str) -> str:
    return f"leases/{pipeline}.json"


def parse(data: bytes | None) -> Holder | None:
    """The record's holder; None if there is none, or what is there is no record."""
    try:
        return Holder(**json.loads(data)) if data else None
    except (ValueError, TypeError):
        return None


def holder_of(store: Store, pipeline: str) -> Holder | None:
    return parse(store.read(path_of(pipeline)))


def is_driven(store: Store, pipeline: str) -> bool:
    """Whether a living driver holds the pipeline: by its lock, or in a bucket by its beat."""
    if store.is_local:
        return lock.is_held(_lock_file(store, pipeline))
    holder = holder_of(store, pipeline)
    return holder is not None and not holder.released and holder.age_s <= STALE_S


class Pulse:
    """Whether a record goes on changing, by this machine's clock."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self._seen: dict[str, tuple[float, float, float]] = {}

    def left_s(self, holder: Holder) -> float:
        """Until it may be taken for dead, if it stays silent; 0 if it is dead."""
        beat, patience, since = self._seen.get(holder.owner, (None, 0.0, 0.0))
        if beat != holder.beat:
            patience = max(CONFIRM_S, STALE_S - holder.age_s) if beat is None else STALE_S
            since = self.now()
            self._seen[holder.owner] = (holder.beat, patience, since)
        return max(0.0, since + patience - self.now())

    def has_beaten(self, holder: Holder) -> bool:
        """Whether it changed since it was first seen here."""
        before = self._seen.get(holder.owner)
        return before is not None and before[0] != holder.beat


class Lease:
    """This process's hold on a pipeline, kept alive by a thread."""

    def __init__(self, store: Store, path: str, holder: Holder) -> None:
        self.store, self.path, self.holder = store, path, holder
        self.lost: Holder | None = None
        self._writing = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    @property
    def owner(self) -> str:
        return self.holder.owner

    def start(self) -> None:
        self._thread.start()

    def check(self) -> None:
        """LeaseLost if another driver has taken over."""
        if not self.lost:
            self.beat()
        if self.lost:
            raise LeaseLost(
                f"another driver has taken over ({self.lost}); this one was silent for too long"
            )

    def ensure(self) -> None:
        """As :meth:`check`, but asks the store only after a silence."""
        if self.lost or self.holder.age_s > 3 * BEAT_S:
            self.check()

    def beat(self, released: bool = False) -> None:
        """Writes the record anew; notes it if it is another's by now."""
        with self._writing:
            seen = read_snapshot(self.store, self.path)
            over = released or self._over.is_set()  # a beat that waited for the last one
            now = replace(self.holder, beat=time.time(), released=over)
            there = parse(seen.data)
            if there is not None and there.owner != self.owner:
                self.lost = there
            elif compare_and_swap(self.store, self.path, seen, dumped(now)):
                self.holder = now
            else:
                there = parse(read_snapshot(self.store, self.path).data)
                self.lost = there if there and there.owner != self.owner else None

    def _keep(self) -> None:
        while not self._over.wait(BEAT_S) and not self.lost:
            # A store that is away stops no work; whoever commits will hear of it.
            with contextlib.suppress(OSError):
                self.beat()

    def release(self) -> None:
        self._over.set()
        if not self.lost:
            with contextlib.suppress(OSError):  # a bucket that is away: the record grows stale
                self.beat(released=True)


def dumped(holder: Holder) -> bytes:
    return json.dumps(asdict(holder), indent=1).encode()


@contextlib.contextmanager
def only_driver(
    store: Store, pipeline: str, say: Callable[[str], None] = lambda _: None
) -> Iterator[Lease]:
    """Holds the pipeline for this process; ValueError if another works on it."""
    with _locked(store, pipeline) if store.is_local else contextlib.nullcontext():
        lease = take(store, pipeline, say)
        lease.start()
        try:
            yield lease
        finally:
            lease.release()


def take(
    store: Store,
    pipeline: str,
    say: Callable[[str], None] = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> Lease:
    """Takes the lease that is free, or that of a driver that is dead, once that is certain.

    On disk whoever comes here holds the lock, so that any other holder is dead.
    """
    pulse, path, told = Pulse(now), path_of(pipeline), False
    while True:
        seen = read_snapshot(store, path)
        holder = parse(seen.data)
        rival = holder if holder and not holder.released and not store.is_local else None
        if rival and pulse.has_beaten(rival):
            raise refusal(pipeline, rival)
        if rival and not is_dead_here(rival) and (left := pulse.left_s(rival)):
            if not told:
                say(f"{pipeline} was being run by {rival}; looking whether it lives")
                told = True
            sleep(min(1.0, left))
            continue
        if mine := _swapped(store, path, seen, holder):
            if rival:
                say(f"takes over from {rival}, which is dead")
            return Lease(store, path, mine)


def _swapped(store: Store, path: str, seen: Snapshot, before: Holder | None) -> Holder | None:
    host, process = socket.gethostname(), os.getpid()
    mine = Holder(
        owner=f"{host}.{process}.{uuid.uuid4().hex[:8]}",
        host=host,
        process=process,
        attempt=1 + (before.attempt if before else 0),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        beat=time.time(),
    )
    return mine if compare_and_swap(store, path, seen, dumped(mine)) else None


def refusal(pipeline: str, holder: Holder | None) -> ValueError:
    by = f" ({holder})" if holder else ""
    return ValueError(
        f"pipeline {pipeline} is being run already{by}; watch it with `ediffi status`, or end it "
        "with `ediffi cancel`"
    )


def is_dead_here(holder: Holder) -> bool:
    """Whether it was a process of this machine's that is gone."""
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
            raise refusal(pipeline, holder_of(store, pipeline)) from None
        yield
