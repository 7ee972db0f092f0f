"""Per-node claims: when two pipelines share a node, one builds it and the other waits.

A claim is a record in the store that names a driver. It is valid while that driver's lease is
(:mod:`pipelines.runs.lease`), so it needs no heartbeat of its own. The claim of a dead driver is
taken over.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from pipelines.runs.lease import (
    HeartbeatMonitor,
    Holder,
    Lease,
    holder_of,
    is_dead_here,
    is_driven,
)
from pipelines.store.artifacts import Store
from pipelines.store.compare_and_swap import compare_and_swap, read_snapshot

POLL_EVERY_S = 5.0


class ClaimLost(RuntimeError):
    """Another driver took this one for dead, and builds the node now."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim as the store keeps it."""

    owner: str
    """Id of the driver that has the claim: :attr:`Holder.owner` of its lease."""

    pipeline: str
    """Pipeline that the driver runs."""

    at: float
    """Seconds since 1970, by the owner's clock."""

    released: bool = False


class Claims:
    """The claims of one driver."""

    def __init__(
        self,
        store: Store,
        pipeline: str,
        lease: Lease,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            pipeline: that this driver runs.
            lease: this driver's lease on it.
            now: clock, in seconds.
        """
        self.store, self.pipeline, self.lease = store, pipeline, lease
        self.monitor, self.now = HeartbeatMonitor(now), now
        self.held: set[str] = set()
        """Folders of the nodes that this driver has claimed."""

        self._next_poll: dict[str, float] = {}

    def is_due(self, folder: str) -> bool:
        """Whether to try to claim a node now; one that another driver has is polled every 5 s."""
        return self.now() >= self._next_poll.get(folder, 0.0)

    def acquire(self, folder: str) -> tuple[str, Holder] | None:
        """Claim a node, by its folder in the store.

        Returns:
            None if this driver has the claim now; else the pipeline that builds the node, and its
            live driver.
        """
        while True:
            seen = read_snapshot(self.store, path_of(folder))
            claim = parse(seen.data)
            if claim and (holder := self._live_owner(claim)):
                self._next_poll[folder] = self.now() + POLL_EVERY_S
                return claim.pipeline, holder
            if compare_and_swap(self.store, path_of(folder), seen, self._record()):
                self.held.add(folder)
                return None

    def check(self, folder: str) -> None:
        """Check that this driver still has a claim.

        Raises:
            ClaimLost: Another driver has taken it over.
        """
        claim = parse(self.store.read(path_of(folder)))
        if claim is None or claim.owner != self.lease.owner:
            self.held.discard(folder)
            raise ClaimLost(f"another driver has taken over {folder}")

    def release(self, folder: str) -> None:
        """Give up a claim; does nothing if this driver does not have it."""
        if folder not in self.held:
            return
        self.held.discard(folder)
        seen = read_snapshot(self.store, path_of(folder))
        claim = parse(seen.data)
        if claim and claim.owner == self.lease.owner:
            compare_and_swap(self.store, path_of(folder), seen, self._record(released=True))

    def release_all(self) -> None:
        """Give up all claims of this driver."""
        for folder in sorted(self.held):
            self.release(folder)

    def _record(self, released: bool = False) -> bytes:
        mine = Claim(
            owner=self.lease.owner, pipeline=self.pipeline, at=time.time(), released=released
        )
        return json.dumps(asdict(mine), indent=1).encode()

    def _live_owner(self, claim: Claim) -> Holder | None:
        """The driver that has a claim, if it is another one and alive."""
        if claim.released or claim.owner == self.lease.owner:
            return None
        holder = holder_of(self.store, claim.pipeline)
        if holder is None or holder.released or holder.owner != claim.owner:
            return None
        if self.store.is_local:
            return holder if is_driven(self.store, claim.pipeline) else None
        dead = is_dead_here(holder) or not self.monitor.time_left_s(holder)
        return None if dead else holder


def live_owner(store: Store, folder: str) -> str | None:
    """The pipeline whose live driver has claimed a node; None if there is none."""
    claim = parse(store.read(path_of(folder)))
    if claim is None or claim.released or not is_driven(store, claim.pipeline):
        return None
    holder = holder_of(store, claim.pipeline)
    return claim.pipeline if holder and holder.owner == claim.owner else None


def path_of(folder: str) -> str:
    """Path of a node's claim in the store."""
    return f"leases/{folder}.json"


def parse(data: bytes | None) -> Claim | None:
    """The claim in a record; None if there is no record or it is damaged."""
    try:
        return Claim(**json.loads(data)) if data else None
    except (ValueError, TypeError):
        return None
