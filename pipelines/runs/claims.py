"""Who is making a node: of two pipelines that share it, one does and the other waits.

A claim is a record in the store that names a driver. It lives as long as that driver does
(:mod:`pipelines.runs.lease`), so it needs no beat of its own; that of a dead driver is taken over.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from pipelines.runs.lease import Holder, Lease, Pulse, holder_of, is_dead_here, is_driven
from pipelines.store.artifacts import Store
from pipelines.store.compare_and_swap import compare_and_swap, read_snapshot

ASK_EVERY_S = 5.0


class ClaimLost(RuntimeError):
    """Another driver, which took this one for dead, makes the node."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    owner: str
    pipeline: str
    """Of the owner."""

    at: float
    released: bool = False


class Claims:
    """Of one driver."""

    def __init__(
        self,
        store: Store,
        pipeline: str,
        lease: Lease,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.pipeline, self.lease = store, pipeline, lease
        self.pulse, self.now = Pulse(now), now
        self.held: set[str] = set()
        self._ask_again: dict[str, float] = {}

    def is_due(self, folder: str) -> bool:
        """Whether to ask about a node: of one that another makes only now and then."""
        return self.now() >= self._ask_again.get(folder, 0.0)

    def take(self, folder: str) -> tuple[str, Holder] | None:
        """Takes a node; else says which pipeline makes it, and its living driver."""
        while True:
            seen = read_snapshot(self.store, path_of(folder))
            claim = parse(seen.data)
            if claim and (holder := self._living(claim)):
                self._ask_again[folder] = self.now() + ASK_EVERY_S
                return claim.pipeline, holder
            if compare_and_swap(self.store, path_of(folder), seen, self._record()):
                self.held.add(folder)
                return None

    def check(self, folder: str) -> None:
        """ClaimLost if the node is another driver's by now."""
        claim = parse(self.store.read(path_of(folder)))
        if claim is None or claim.owner != self.lease.owner:
            self.held.discard(folder)
            raise ClaimLost(f"another driver has taken over {folder}")

    def release(self, folder: str) -> None:
        if folder not in self.held:
            return
        self.held.discard(folder)
        seen = read_snapshot(self.store, path_of(folder))
        claim = parse(seen.data)
        if claim and claim.owner == self.lease.owner:
            compare_and_swap(self.store, path_of(folder), seen, self._record(released=True))

    def release_all(self) -> None:
        for folder in sorted(self.held):
            self.release(folder)

    def _record(self, released: bool = False) -> bytes:
        mine = Claim(
            owner=self.lease.owner, pipeline=self.pipeline, at=time.time(), released=released
        )
        return json.dumps(asdict(mine), indent=1).encode()

    def _living(self, claim: Claim) -> Holder | None:
        """The claim's driver, if it is another one, and lives."""
        if claim.released or claim.owner == self.lease.owner:
            return None
        holder = holder_of(self.store, claim.pipeline)
        if holder is None or holder.released or holder.owner != claim.owner:
            return None
        if self.store.is_local:
            return holder if is_driven(self.store, claim.pipeline) else None
        dead = is_dead_here(holder) or not self.pulse.left_s(holder)
        return None if dead else holder


def path_of(folder: str) -> str:
    return f"leases/{folder}.json"


def parse(data: bytes | None) -> Claim | None:
    try:
        return Claim(**json.loads(data)) if data else None
    except (ValueError, TypeError):
        return None
