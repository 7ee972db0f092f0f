"""Which of the nodes that are ready start now; pure, for the run and for the plan's simulator.

Whoever is first and does not fit keeps what is free of all that it needs. Smaller ones behind it
get only what it has no use for, so of what it waits for nothing is handed out until it has begun:
those at work end, and it starts. No node starves, and no two wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Amount:
    """Of what nodes need at once."""

    cpus: float = 0
    gpus: float = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(cpus=self.cpus + other.cpus, gpus=self.gpus + other.gpus)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(cpus=self.cpus - other.cpus, gpus=self.gpus - other.gpus)

    def holds(self, need: Amount) -> bool:
        """Whether so much is there; fractions of a GPU add up but for rounding."""
        return need.cpus <= self.cpus + 1e-6 and need.gpus <= self.gpus + 1e-6

    def shared_with(self, need: Amount) -> Amount:
        """What of it somebody needs."""
        return Amount(cpus=min(self.cpus, need.cpus), gpus=min(self.gpus, need.gpus))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A node whose inputs are done."""

    id: str
    need: Amount
    priority: int = 0
    way: float = 0
    """The longest way from its start to the end."""


def in_order(ready: Iterable[Candidate]) -> list[Candidate]:
    """The highest priority first, then the longest way; of equal ones as they were given."""
    return sorted(ready, key=lambda c: (-c.priority, -c.way))


def startable(ready: Iterable[Candidate], free: Amount) -> list[Candidate]:
    """Those that start now, the first first."""
    found = []
    for candidate in in_order(ready):
        if free.holds(candidate.need):
            found.append(candidate)
            free -= candidate.need
        else:
            free -= free.shared_with(candidate.need)
    return found
