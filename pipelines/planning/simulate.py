"""Runs tasks on a cluster that is not there: when each would start, and how good that is.

Pure. The order is the run's own, :mod:`pipelines.dag.scheduling`: of what is ready, the longest
way to the end first; a gang gets all its GPUs at once, and nobody behind it gets what it waits for.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.dag.node import Resources
from pipelines.dag.scheduling import Candidate, startable, subtract


@dataclass(frozen=True, kw_only=True)
class Task:
    name: str
    seconds: float
    needs: Sequence[str] = ()
    """Tasks that must have ended; of others nothing is known, so they are taken for done."""

    group: str = ""
    gang: float = 0
    """How many of the group it holds from start to end; 0 needs none."""

    priority: int = 0
    way: float = 0
    """The longest way from its start to the end."""

    @property
    def need(self) -> Resources:
        return {self.group: self.gang} if self.gang else {}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    tasks: Mapping[str, Task]
    capacity: Mapping[str, float]
    starts: Mapping[str, float]
    """Seconds from the beginning, in the order of starting."""

    critical: Sequence[str]
    """The longest chain of tasks that need each other."""

    def end(self, task: str) -> float:
        return self.starts[task] + self.tasks[task].seconds

    @property
    def makespan(self) -> float:
        return max((self.end(t) for t in self.tasks), default=0.0)

    @property
    def critical_seconds(self) -> float:
        return sum(self.tasks[t].seconds for t in self.critical)

    def work(self, group: str) -> float:
        """Seconds times members of the group held."""
        return sum(t.seconds * t.gang for t in self.tasks.values() if t.group == group)

    @property
    def bounds(self) -> dict[str, float]:
        """What no schedule can be below: the critical path, and each group's work over its size."""
        shared = {f"work of {g}": self.work(g) / n for g, n in self.capacity.items()}
        return {"critical path": self.critical_seconds, **shared}

    @property
    def bound(self) -> float:
        return max(self.bounds.values())

    @property
    def above(self) -> float:
        """How far above the bound, as a share of it."""
        return self.makespan / self.bound - 1 if self.bound else 0.0

    def idle(self, group: str) -> float:
        """Share of the group's time, until all is done, that nobody holds."""
        whole = self.capacity[group] * self.makespan
        return 1 - self.work(group) / whole if whole else 0.0


def simulate(tasks: Sequence[Task], capacity: Mapping[str, float]) -> Schedule:
    """List scheduling. ValueError if a gang can never fit, or tasks need each other in a circle.

    Args:
        capacity: group → members.
    """
    named = {t.name: t for t in tasks}
    for t in tasks:
        if t.gang > capacity.get(t.group, 0):
            raise ValueError(
                f"{t.name} needs {t.gang:g} of {t.group or 'no group'} at once, "
                f"which has {capacity.get(t.group, 0):g}: it could never start"
            )
    free, starts, ended = dict(capacity), dict[str, float](), set[str]()
    waiting = list(tasks)
    running: list[tuple[float, int, Task]] = []
    now = 0.0
    while waiting or running:
        ready = [
            Candidate(id=t.name, resources=t.need, priority=t.priority, path_length=t.way)
            for t in waiting
            if all(n in ended or n not in named for n in t.needs)
        ]
        for chosen in startable(ready, free):
            t = named[chosen.id]
            free = subtract(free, t.need)
            starts[t.name] = now
            waiting.remove(t)
            heapq.heappush(running, (now + t.seconds, len(starts), t))
        if not running:
            circle = ", ".join(t.name for t in waiting)
            raise ValueError(f"{circle} wait for each other: none could ever start")
        now = running[0][0]
        while running and running[0][0] <= now:
            t = heapq.heappop(running)[2]
            ended.add(t.name)
            if t.gang:
                free[t.group] += t.gang
    return Schedule(tasks=named, capacity=capacity, starts=starts, critical=_longest(named))


def _longest(tasks: Mapping[str, Task]) -> list[str]:
    """The chain of the most seconds, from its start to its end."""
    best: dict[str, tuple[float, str | None]] = {}

    def until(name: str) -> float:
        """Seconds to the end of a task, by the longest way to it."""
        if name not in best:
            before = [(until(n), n) for n in tasks[name].needs if n in tasks]
            longest = max(before, default=(0.0, None), key=lambda b: b[0])
            best[name] = longest[0] + tasks[name].seconds, longest[1]
        return best[name][0]

    last: str | None = max(tasks, key=until, default=None)
    chain: list[str] = []
    while last is not None:
        chain.append(last)
        last = best[last][1]
    return chain[::-1]
