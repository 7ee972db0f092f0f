"""Which ready nodes start now. Pure functions, shared by the runner and the plan's simulator.

Nodes are taken in order of priority. The first one that does not fit reserves whatever is free of
the resources it needs, and the nodes behind it get only the rest. Running nodes eventually finish
and free what the reservation lacks, so no node starves, and no two nodes wait for each other.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
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


Need = tuple[tuple[str, float], ...]
Place = tuple[int, float, int, str]
"""Sorts candidates by their turn; ends with the id."""


class ReadyQueue:
    """Candidates in the order in which they start: highest priority first, then longest path.

    Those that need the same are kept together. So choosing takes time for what is free and for the
    kinds of need, not for every candidate.
    """

    def __init__(self) -> None:
        self._lines: dict[Need, list[Place]] = {}
        self._places: dict[str, tuple[Need, Place]] = {}

    def add(self, candidate: Candidate, order: int) -> None:
        """Add a candidate; ``order`` breaks ties, the lowest first."""
        needs = candidate.resources.items()
        need = tuple(sorted((kind, n) for kind, n in needs if n > ROUNDING))
        place = (-candidate.priority, -candidate.path_length, order, candidate.id)
        self._places[candidate.id] = need, place
        insort(self._lines.setdefault(need, []), place)

    def remove(self, candidate: str) -> None:
        """Remove a candidate, by its id."""
        need, place = self._places.pop(candidate)
        line = self._lines[need]
        del line[bisect_left(line, place)]

    def startable(self, free: Resources) -> list[str]:
        """Choose the candidates that start now, without removing them.

        Args:
            free: resources that no running node holds.

        Returns:
            Ids of the candidates to start, in order. Together they fit into ``free``.
        """
        found = []
        turns = [(line[0], 0, need) for need, line in self._lines.items() if line]
        heapq.heapify(turns)
        while turns:
            place, at, need = heapq.heappop(turns)
            if fits(dict(need), free):
                found.append(place[-1])
            free = subtract(free, dict(need))  # one that does not fit reserves what there is
            line = self._lines[need]
            exhausted = need and not any(free.get(kind, 0) for kind, _ in need)
            if at + 1 < len(line) and not exhausted:
                heapq.heappush(turns, (line[at + 1], at + 1, need))
        return found


def startable(ready: Iterable[Candidate], free: Resources) -> list[Candidate]:
    """As :meth:`ReadyQueue.startable`, of candidates given all at once; ties keep their order."""
    queue, of = ReadyQueue(), {candidate.id: candidate for candidate in ready}
    for order, candidate in enumerate(of.values()):
        queue.add(candidate, order)
    return [of[name] for name in queue.startable(free)]


def fits(resources: Resources, free: Resources) -> bool:
    """Whether all of ``resources`` is free."""
    return all(n <= free.get(kind, 0) + ROUNDING for kind, n in resources.items())


def subtract(free: Resources, resources: Resources) -> dict[str, float]:
    """What remains of ``free`` after ``resources`` are taken; never below 0."""
    return {kind: max(0.0, n - resources.get(kind, 0)) for kind, n in free.items()}
