"""Run a job's chunks: in this process, or on Ray actors that take them from a queue."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.evaluation.job import Chunk, Job
from pipelines.evaluation.parts import Parts
from pipelines.evaluation.worker import Worker

MAX_DEATHS = 3
"""Workers that one chunk may cost, before the evaluation fails."""


class WorkersDied(RuntimeError):
    """Worker after worker died, such as for lack of memory."""


Progress = Callable[[int, int], None]
"""Called with the pictures whose parts are written, and their number in all."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many workers an evaluation has, and what each of them holds."""

    count: int = 1
    """1 computes in the calling process; more are Ray actors."""

    cpus: int = 1
    gpus: float = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    """Ray node labels that their machines must have."""


def run(job: Job, workers: Workers, progress: Progress = lambda done, of: None) -> Parts:
    """Compute every chunk whose part is not in the store yet.

    After an interruption, the same call computes what is left.

    Returns:
        The parts, to be reduced.

    Raises:
        ValueError: A model, a metric or data is missing or does not fit.
        WorkersDied: A chunk ended several workers.
    """
    chunks = job.pictures()
    if job.losses is not None:
        chunks += job.loss_chunks(len(job.source()))
    there = job.store.files(job.parts_folder)
    todo = [chunk for chunk in chunks if chunk.file not in there]
    finished = sum(len(c) for c in chunks if c.kind == "pictures" and c.file in there)

    def done(chunk: Chunk) -> None:
        nonlocal finished
        if chunk.kind == "pictures":
            finished += len(chunk)
            progress(finished, job.count)

    if todo and workers.count == 1:
        worker = Worker(job)
        worker.open()
        for chunk in todo:
            worker.compute(chunk)
            done(chunk)
    elif todo:
        _on_actors(job, workers, todo, done)
    return Parts(job)


def _on_actors(
    job: Job, workers: Workers, todo: list[Chunk], done: Callable[[Chunk], None]
) -> None:
    """Compute chunks on Ray actors.

    A chunk goes only to an actor that has loaded its models, so that none waits for an actor that
    finds no machine. An actor that dies is replaced, and its chunk goes to whoever is free.
    """
    import ray

    actor_class: Any = ray.remote(
        num_cpus=workers.cpus,
        num_gpus=workers.gpus or None,
        label_selector=dict(workers.labels) or None,
    )(Worker)
    waiting, left = deque(todo), len(todo)
    deaths: Counter[Chunk | None] = Counter()
    busy: dict[Any, tuple[Any, Chunk | None]] = {}
    """Pending call → its actor, and the chunk it computes; None while it loads its models."""
    idle: list[Any] = []

    def start() -> None:
        actor = actor_class.remote(job)
        busy[actor.open.remote()] = actor, None

    for _ in range(min(workers.count, len(todo))):
        start()
    try:
        while left:
            [call], _ = ray.wait(list(busy), num_returns=1)
            actor, chunk = busy.pop(call)
            try:
                ray.get(call)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:  # not all that end an actor are ActorErrors
                deaths[chunk] += 1
                if deaths[chunk] == MAX_DEATHS * (1 if chunk else workers.count):
                    doing = f"computing {chunk.file}" if chunk else "loading the models"
                    raise WorkersDied(
                        f"{deaths[chunk]} workers died while {doing}: {error}"
                    ) from error
                if chunk:
                    waiting.appendleft(chunk)
                ray.kill(actor)  # it may only be out of reach
                start()
            else:
                idle.append(actor)
                if chunk:
                    left -= 1
                    done(chunk)
            while waiting and idle:
                actor, chunk = idle.pop(), waiting.popleft()
                busy[actor.compute.remote(chunk)] = actor, chunk
    finally:
        for actor in (*idle, *(actor for actor, _ in busy.values())):
            ray.kill(actor)
