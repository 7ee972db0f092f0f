"""Which ready nodes start now. Pure functions, shared by the runner and the plan's simulator.

Nodes are taken in order of priority. The first one that does not fit reserves whatever is free of
the resources it needs, and the nodes behind it get only the rest. Running nodes eventually finish
and free what the reservation lacks, so no node starves, and no two nodes wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipelines.dag.node import Resources

ROUNDING = 1e-6  # fractions of a GPU do not add up exactly


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A node whose dependencies are done."""

    id: str
    resources: Resources
    """Needed all at once, for the node to start."""

    priority: int = 0
    path_length: float = 0
    """Length of the longest path from the start of this node to the end of the plan."""


def by_priority(ready: Iterable[Candidate]) -> list[Candidate]:
    """Highest priority first, then longest path; ties keep their order."""
    return sorted(ready, key=lambda c: (-c.priority, -c.path_length))


def startable(ready: Iterable[Candidate], free: Resources) -> list[Candidate]:
    """Choose the nodes that start now.

    Args:
        ready: nodes whose dependencies are done.
        free: resources that no running node holds.

    Returns:
        The nodes to start, highest priority first. Together they fit into ``free``.
    """
    found = []
    for candidate in by_priority(ready):
        if fits(candidate.resources, free):
            found.append(candidate)
        # One that does not fit reserves what there is.
        free = subtract(free, candidate.resources)
    return found


def fits(resources: Resources, free: Resources) -> bool:
    """Whether all of ``resources`` is free."""
    return all(n <= free.get(kind, 0) + ROUNDING for kind, n in resources.items())


def subtract(free: Resources, resources: Resources) -> dict[str, float]:
    """What remains of ``free`` after ``resources`` are taken; never below 0."""
    return {kind: max(0.0, n - resources.get(kind, 0)) for kind, n in free.items()}
