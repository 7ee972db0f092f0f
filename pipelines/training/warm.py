"""Warm workers: many trainings of one worker each, without starting Ray Train for every one.

A warm worker is a run of Ray Train whose function takes jobs from a mailbox, one after another,
and returns each outcome there. A job that fails ends its worker, so ``fit()`` raises what it would
raise for a node of its own, and a retry starts in a new process.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipelines.runs.context import Context
from pipelines.runs.threads import in_thread
from pipelines.training import preemption

Outcome = dict[str, Any]
Job = Callable[[dict[str, Any]], Outcome]

POLL_INTERVAL_S = 0.5
"""How often an idle worker looks for a request to stop."""

NEXT_TO_NOTHING = 0.001
"""Ray CPUs of a worker that leaves its CPUs to other nodes while it is idle."""


@dataclass(frozen=True)
class Shape:
    """What a worker is started with; a job needs a worker of its own shape."""

    cpus: float
    gpus: float
    labels: frozenset[tuple[str, str]]
    timeout_s: float

    @staticmethod
    def of(ctx: Context) -> Shape | None:
        """The shape of a node's worker; None for a node that does not run in a warm one."""
        workers: Mapping[str, Any] = ctx.runtime.get("workers") or {}
        if not workers.get("keep_warm") or workers["count"] != 1:
            return None
        labels = frozenset(workers["labels"].items())
        return Shape(ctx.cpus, workers["gpus"], labels, workers["timeout_s"])

    @property
    def holds_resources(self) -> bool:
        """Whether an idle worker holds resources that Ray could give to other nodes.

        On a single machine the runner alone decides what fits, so a worker on CPUs needs none of
        Ray's. On a cluster Ray places workers by their CPUs.
        """
        return self.gpus > 0 or bool(os.environ.get("RAY_ADDRESS"))

    @property
    def ray_cpus(self) -> float:
        """CPUs that the worker asks Ray for."""
        return self.cpus if self.holds_resources else NEXT_TO_NOTHING


# -- in the worker -------------------------------------------------------------------------------


class Mailbox:
    """Ray actor between the driver and one warm worker. It dies with the driver."""

    def __init__(self) -> None:
        self.jobs: asyncio.Queue[list[Any] | None] = asyncio.Queue()
        self.outcomes: asyncio.Queue[Outcome] = asyncio.Queue()

    async def give(self, job: list[Any]) -> Outcome:
        """Give the worker a job; → its outcome.

        Args:
            job: one Ray reference, to the function and its argument. In a list, since Ray would
                resolve a bare reference here.
        """
        await self.jobs.put(job)
        return await self.outcomes.get()

    async def end(self) -> None:
        """Let the worker end once it is idle."""
        await self.jobs.put(None)

    async def take(self) -> list[Any] | None:
        """The next job; None to end."""
        return await self.jobs.get()

    async def deliver(self, outcome: Outcome) -> None:
        """Return the outcome of the job that was taken last."""
        await self.outcomes.put(outcome)


def serve(config: dict[str, Any]) -> None:
    """Run jobs until told to end: the function that Ray Train calls in a warm worker.

    Args:
        config: ``mailbox``, handle of the worker's :class:`Mailbox`.

    Raises:
        Exception: A job's; the worker ends with it.
        Preempted: The worker was asked to stop while it was idle.
        RayActorError: The driver is gone.
    """
    import ray

    mailbox = config["mailbox"]
    while (job := _next_job(mailbox)) is not None:
        work, argument = ray.get(job[0])
        ctx: Context = argument["ctx"]
        preemption.follow(ctx.board, ctx.node)
        outcome = work(argument)
        preemption.follow(None)
        del job, work, argument, ctx
        _forget()
        ray.get(mailbox.deliver.remote(outcome))


def _next_job(mailbox: Any) -> list[Any] | None:
    import ray

    job = mailbox.take.remote()
    while not ray.wait([job], timeout=POLL_INTERVAL_S)[0]:
        if reason := preemption.stop_reason():
            raise preemption.Preempted(reason)
    found: list[Any] | None = ray.get(job)
    return found


def _forget() -> None:
    """Free what a job leaves behind, so that the next finds the process as the first did."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # else compiled blocks of earlier networks count towards its limit
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


# -- in the driver -------------------------------------------------------------------------------


class Worker:
    """A warm worker and its run of Ray Train, as the driver sees them."""

    def __init__(self, shape: Shape, fit: Callable[[Job, dict[str, Any]], Any]) -> None:
        """
        Args:
            fit: calls a function on a new worker of Ray Train, and returns when it ends.
        """
        import ray

        self.shape = shape
        self.mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
        self.run = in_thread(fit, serve, {"mailbox": self.mailbox})

    def do(self, work: Job, argument: dict[str, Any]) -> Outcome:
        """Run a job and wait for its outcome.

        Raises:
            Exception: What ``fit()`` raised, if the job failed or its worker died. The worker has
                ended then.
        """
        import ray

        job = ray.put((work, argument))
        outcome = self.mailbox.give.remote([job]).future()
        wait([outcome, self.run], return_when=FIRST_COMPLETED)
        if outcome.done() and outcome.exception() is None:
            found: Outcome = outcome.result()
            return found
        # If the mailbox was lost, the worker ends as soon as it misses it, and not before its job.
        self.run.result()
        raise preemption.Preempted("its warm worker ended before the job")

    def end(self) -> None:
        """Let the worker end, without waiting for it."""
        self.mailbox.end.remote()


@dataclass
class Pool:
    """The warm workers of this process. All methods may be called from any thread."""

    idle: list[Worker] = field(default_factory=list)
    ending: list[Worker] = field(default_factory=list)
    """Workers that were told to end."""

    nodes: list[Shape | None] = field(default_factory=list)
    """The shape of each node that runs now; None for those that need no warm worker."""

    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def room_for(self, shape: Shape | None) -> Iterator[None]:
        """Hold no resources with idle workers of other shapes while a node runs.

        Args:
            shape: the node's; None for one that does not run in a warm worker.
        """
        with self.lock:
            self.nodes.append(shape)
            self._make_room()
        try:
            yield
        finally:
            with self.lock:
                self.nodes.remove(shape)

    def do(self, shape: Shape, start: Callable[[], Worker], work: Job, argument: Any) -> Outcome:
        """Run a job on an idle worker of its shape, or on a new one.

        Args:
            start: starts a worker of that shape.

        Raises:
            Exception: As :meth:`Worker.do`.
        """
        with self.lock:
            self.idle = [w for w in self.idle if not w.run.done()]
            found = next((w for w in self.idle if w.shape == shape), None)
            if found is not None:
                self.idle.remove(found)
            else:
                self._end(list(self.idle))  # of other shapes: they would hold memory for nothing
        worker = found or start()
        outcome = worker.do(work, argument)
        with self.lock:
            self.idle.append(worker)
            self._make_room()
        return outcome

    def close(self, wait_s: float) -> None:
        """End the idle workers, and wait so long for them."""
        with self.lock:
            self._end(list(self.idle))
            ending, self.ending = self.ending, []
        wait([w.run for w in ending], timeout=wait_s)

    def _make_room(self) -> None:
        """End idle workers that hold what another running node may be waiting for."""
        self._end([w for w in self.idle if w.shape.holds_resources and set(self.nodes) - {w.shape}])

    def _end(self, workers: list[Worker]) -> None:
        self.ending = [w for w in self.ending if not w.run.done()]
        for worker in workers:
            self.idle.remove(worker)
            worker.end()
            self.ending.append(worker)


POOL = Pool()
"""The pool of this process: a driver has one connection to Ray."""
