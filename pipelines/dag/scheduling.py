"""Which of the nodes that are ready start now; pure, for the run and for the plan's simulator.

Whoever is first and does not fit keeps what is free of all that it needs. Smaller ones behind it
get only what it has no use for, so of what it waits for nothing is handed out until it has begun:
those at work end, and it starts. No node starves, and no two wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipelines.dag.node import Amount

ROUNDING = 1e-6  # fractions of a GPU do not add up exactly


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
        if holds(free, candidate.need):
            found.append(candidate)
        free = less(free, candidate.need)  # of one that does not fit: what there is of it
    return found


def holds(free: Amount, need: Amount) -> bool:
    return all(n <= free.get(kind, 0) + ROUNDING for kind, n in need.items())


def less(free: Amount, need: Amount) -> dict[str, float]:
    """What is left when so much, or all there is of it, is taken."""
    return {kind: max(0.0, n - need.get(kind, 0)) for kind, n in free.items()}
