"""Per-node claims: when two pipelines share a node, one builds it and the other waits.

A claim is a record in the store that names a driver. It is valid while that driver's lease is
(:mod:`pipelines.runs.lease`), so it needs no heartbeat of its own. The claim of a dead driver is
taken over.

The claim is also where a node is committed. Its driver swaps the manifest into the claim ("seals"
it) and then writes the file. A takeover is a swap of the same record, so exactly one of the two
comes first: either the driver has lost the claim and commits nothing, or whoever takes the claim
over finds the manifest in it and writes the file instead of building the node. Until then only the
claim's owner can write into the node's folder (:mod:`pipelines.store.fenced`), so the files stay
what the manifest says.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from pipelines.runs.lease import HeartbeatMonitor, Holder, Lease, holder_of, is_driven, parse_as
from pipelines.store.artifacts import MANIFEST, Store
from pipelines.store.compare_and_swap import compare_and_swap, read_snapshot
from pipelines.store.fenced import FencedStore, OwnerChanged

POLL_EVERY_S = 5.0


class ClaimLost(OwnerChanged):
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

    sealed: str | None = None
    """The node's manifest, as JSON, from its commit until the file is known to be written."""


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
        self.held: dict[str, str | None] = {}
        """Folder of a claimed node → its manifest if it is sealed and may not be written yet."""

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
            sealed = claim.sealed if claim else None
            if compare_and_swap(self.store, path_of(folder), seen, self._record(sealed=sealed)):
                self.held[folder] = sealed
                if sealed is not None:  # by a driver that died before it wrote the file
                    self._write_manifest(folder, sealed)
                    self._swap(folder)
                return None

    def check(self, folder: str) -> None:
        """Check that this driver still has a claim.

        Raises:
            ClaimLost: Another driver has taken it over.
        """
        self._check(folder, parse(self.store.read(path_of(folder))))

    def _check(self, folder: str, claim: Claim | None) -> None:
        if claim is None or claim.owner != self.lease.owner or claim.released:
            self.held.pop(folder, None)
            raise ClaimLost(f"another driver has taken over {folder}")

    def fenced(self, folder: str) -> FencedStore:
        """The store as the node's step sees it: it may write only while this driver has the claim.

        Its writes raise :class:`OwnerChanged` then.
        """
        return FencedStore(
            root=self.store.root, folder=folder, record=path_of(folder), owner=self.lease.owner
        )

    def commit(self, folder: str, manifest: bytes) -> None:
        """Declare a node done: seal the claim with its manifest, then write the file.

        May be called again after an error of the storage.

        Raises:
            ClaimLost: Another driver has taken the node over; nothing was committed, or the other
                has written the same manifest.
        """
        self._swap(folder, sealed=manifest.decode())
        self.held[folder] = manifest.decode()
        self._write_manifest(folder, manifest.decode())

    def _write_manifest(self, folder: str, sealed: str) -> None:
        try:
            self.fenced(folder).write(f"{folder}/{MANIFEST}", sealed.encode())
        except OwnerChanged as error:
            self.held.pop(folder, None)
            raise ClaimLost(str(error)) from None
        self.held[folder] = None

    def _swap(self, folder: str, sealed: str | None = None) -> None:
        """Write this driver's claim again; ClaimLost if it is another's."""
        while True:
            seen = read_snapshot(self.store, path_of(folder))
            self._check(folder, parse(seen.data))
            record = self._record(sealed=sealed)
            if compare_and_swap(self.store, path_of(folder), seen, record):
                return

    def release(self, folder: str) -> None:
        """Give up a claim; does nothing if this driver does not have it.

        The claim stays sealed if the manifest may not have been written.
        """
        if folder not in self.held:
            return
        sealed = self.held.pop(folder)
        seen = read_snapshot(self.store, path_of(folder))
        claim = parse(seen.data)
        if claim and claim.owner == self.lease.owner:
            record = self._record(released=True, sealed=sealed)
            compare_and_swap(self.store, path_of(folder), seen, record)

    def release_all(self) -> None:
        """Give up all claims of this driver."""
        for folder in sorted(self.held):
            self.release(folder)

    def _record(self, released: bool = False, sealed: str | None = None) -> bytes:
        mine = Claim(
            owner=self.lease.owner,
            pipeline=self.pipeline,
            at=time.time(),
            released=released,
            sealed=sealed,
        )
        return json.dumps(asdict(mine), indent=1).encode()

    def _live_owner(self, claim: Claim) -> Holder | None:
        """The driver that has a claim, if it is another one and alive."""
        if claim.released or claim.owner == self.lease.owner:
            return None
        holder = holder_of(self.store, claim.pipeline)
        if holder is None or holder.released or holder.owner != claim.owner:
            return None
        return None if self.monitor.is_dead(self.store, claim.pipeline, holder) else holder


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
    return parse_as(Claim, data)
