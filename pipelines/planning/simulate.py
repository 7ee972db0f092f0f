"""Simulate a schedule: when each task would start on a cluster, and how good the schedule is.

The order is that of a real run, :mod:`pipelines.dag.scheduling`: among ready tasks, the one with
the longest path to the end comes first. A gang gets all its GPUs at once, and later tasks cannot
take what it waits for.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipelines.dag.node import Resources
from pipelines.dag.scheduling import Candidate, ReadyQueue, subtract


@dataclass(frozen=True, kw_only=True)
class Task:
    """One unit of work with its resources."""

    name: str
    seconds: float
    """Run time."""

    needs: Sequence[str] = ()
    """Tasks that must end first; names that are not simulated count as done."""

    group: str = ""
    """The resource group it runs on."""

    gang: float = 0
    """Members of the group that it holds from start to end; 0 if it needs none."""

    also: Resources = field(default_factory=dict)
    """Members of further groups that it holds meanwhile."""

    priority: int = 0
    """Higher ones start first."""

    path_length: float = 0
    """Length of the longest path from its start to the end of all; breaks ties of priority."""

    @property
    def need(self) -> Resources:
        """Resources it holds."""
        return {**({self.group: self.gang} if self.gang else {}), **self.also}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A simulated run; all times in seconds from its start."""

    tasks: Mapping[str, Task]
    capacity: Mapping[str, float]
    """Group → members."""

    starts: Mapping[str, float]
    """Task → start time, in order of start."""

    critical: Sequence[str]
    """The critical path: the longest chain of dependent tasks."""

    def end(self, task: str) -> float:
        """End time of a task."""
        return self.starts[task] + self.tasks[task].seconds

    @property
    def makespan(self) -> float:
        """End time of the last task."""
        return max((self.end(t) for t in self.tasks), default=0.0)

    @property
    def critical_seconds(self) -> float:
        """Length of the critical path."""
        return sum(self.tasks[t].seconds for t in self.critical)

    def work(self, group: str) -> float:
        """Seconds × members of the group held, summed over its tasks."""
        return sum(t.seconds * t.gang for t in self.tasks.values() if t.group == group)

    @property
    def bounds(self) -> dict[str, float]:
        """Lower bounds of the makespan: the critical path, and each group's work ÷ its size."""
        shared = {f"work of {g}": self.work(g) / n for g, n in self.capacity.items()}
        return {"critical path": self.critical_seconds, **shared}

    @property
    def bound(self) -> float:
        """The highest lower bound."""
        return max(self.bounds.values())

    @property
    def above(self) -> float:
        """How far the makespan exceeds the bound, as a fraction of it."""
        return self.makespan / self.bound - 1 if self.bound else 0.0

    def idle(self, group: str) -> float:
        """Fraction of the group's capacity, until all is done, that no task holds."""
        whole = self.capacity[group] * self.makespan
        return 1 - self.work(group) / whole if whole else 0.0


def simulate(tasks: Sequence[Task], capacity: Mapping[str, float]) -> Schedule:
    """Schedule tasks greedily (list scheduling).

    Args:
        tasks: in any order.
        capacity: group → members.

    Raises:
        ValueError: A gang exceeds its group, or tasks depend on each other in a circle.
    """
    named = {t.name: t for t in tasks}
    for t in tasks:
        for group, members in t.need.items():
            if members > capacity.get(group, 0):
                raise ValueError(
                    f"{t.name} needs {members:g} of {group or 'no group'} at once, "
                    f"which has {capacity.get(group, 0):g}: it can never start"
                )
    free, starts, queue = dict(capacity), dict[str, float](), ReadyQueue()
    unmet: dict[str, int] = {}
    behind: dict[str, list[str]] = {}
    order = {name: at for at, name in enumerate(named)}

    def enqueue(name: str) -> None:
        t = named[name]
        mine = Candidate(id=name, resources=t.need, priority=t.priority, path_length=t.path_length)
        queue.add(mine, order[name])

    for t in named.values():
        needs = {n for n in t.needs if n in named}
        unmet[t.name] = len(needs)
        for n in needs:
            behind.setdefault(n, []).append(t.name)
        if not needs:
            enqueue(t.name)
    running: list[tuple[float, int, Task]] = []
    now = 0.0
    while running or len(starts) < len(named):
        for name in queue.startable(free):
            t = named[name]
            queue.remove(name)
            free = subtract(free, t.need)
            starts[name] = now
            heapq.heappush(running, (now + t.seconds, len(starts), t))
        if not running:
            circle = ", ".join(name for name in named if name not in starts)
            raise ValueError(f"{circle} wait for each other: none can ever start")
        now = running[0][0]
        while running and running[0][0] <= now:
            t = heapq.heappop(running)[2]
            for group, members in t.need.items():
                free[group] += members
            for name in behind.get(t.name, ()):
                unmet[name] -= 1
                if not unmet[name]:
                    enqueue(name)
    return Schedule(tasks=named, capacity=capacity, starts=starts, critical=_longest(named, starts))


def _longest(tasks: Mapping[str, Task], starts: Mapping[str, float]) -> list[str]:
    """The chain of dependent tasks that takes longest, first task first.

    Args:
        starts: every task after those that it needs.
    """
    best: dict[str, tuple[float, str | None]] = {}
    for name in starts:
        before = [(best[n][0], n) for n in tasks[name].needs if n in tasks]
        until, through = max(before, default=(0.0, None), key=lambda b: b[0])
        best[name] = until + tasks[name].seconds, through
    last: str | None = max(tasks, key=lambda name: best[name][0], default=None)
    chain: list[str] = []
    while last is not None:
        chain.append(last)
        last = best[last][1]
    return chain[::-1]
