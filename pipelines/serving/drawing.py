"""Drawing a batch: from jobs to their events, and what to do when a batch fails."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from pipelines.models import rows
from pipelines.models.attention import WordAttention
from pipelines.models.watch import Abandoned, StepDone
from pipelines.serving.attention import attention_event
from pipelines.serving.batching import Job
from pipelines.serving.errors import DrawingFailed, Refused
from pipelines.serving.events import Finished, Started, Step
from pipelines.serving.logs import log, log_error
from pipelines.serving.mailbox import Drawn
from pipelines.serving.meters import Meters
from pipelines.serving.models import Loaded

if TYPE_CHECKING:
    from pipelines.models.watch import Pictures


class BatchWatch:
    """Tells the jobs of a batch of every step, and the model which jobs are still wanted."""

    def __init__(self, jobs: Sequence[Job], meters: Meters) -> None:
        self.jobs, self.meters = jobs, meters
        self.has_begun = False
        """Whether networks have been evaluated: what fails before is the request's fault."""

    def wanted(self) -> list[bool]:
        """As of :class:`~pipelines.models.watch.Watch`."""
        self.has_begun = True
        return [job.wanted() for job in self.jobs]

    def step(self, done: StepDone) -> None:
        """As of :class:`~pipelines.models.watch.Watch`."""
        self.meters.observe(
            "ediffi_serve_step_seconds", done.seconds, stage=done.stage, expert=done.expert
        )
        wanted = self.wanted()
        show = any(job.previews for job, is_wanted in zip(self.jobs, wanted) if is_wanted)
        pictures = done.pictures() if show else None
        for row, job in enumerate(self.jobs):
            if not wanted[row]:
                continue
            event = Step(
                picture=job.picture,
                stage=done.stage,
                step=done.step,
                steps=done.steps,
                sigma=done.sigma,
                expert=done.expert,
                seconds=done.seconds,
            )
            if pictures is None or not job.previews:
                job.tell(event)
                continue
            job.tell(Drawn(event, pictures[row]))
            if not job.previewed:
                job.previewed = True
                waited = time.monotonic() - job.arrived
                self.meters.observe("ediffi_serve_first_preview_seconds", waited)


def draw_batch(loaded: Loaded, jobs: Sequence[Job], meters: Meters) -> None:
    """Draw jobs of one shape, and settle those that are still wanted.

    If a batch fails, its pictures are drawn again each alone; if memory does not suffice, in
    halves, and this model draws no larger batches from then on.
    """
    batches = [list(jobs)]
    while batches:
        batch = [job for job in batches.pop(0) if job.wanted()]
        if batch:
            batches = [*_draw(loaded, batch, meters), *batches]


def _draw(loaded: Loaded, jobs: list[Job], meters: Meters) -> list[list[Job]]:
    """Draw a batch; returns the batches to draw instead if it has failed."""
    watch = BatchWatch(jobs, meters)
    attention = WordAttention() if jobs[0].attention else None
    _tell_started(loaded, jobs, meters)
    try:
        drawn = rows.draw(
            loaded.model,
            [job.row for job in jobs],
            jobs[0].stage,
            watch=watch,
            attention=attention,
        )
        told = [
            attention_event(attention.of(row), job.picture) if attention and job.wanted() else None
            for row, job in enumerate(jobs)
        ]
    except Abandoned:
        return []
    except Exception as error:  # it is one picture's fault, and the others are to be drawn
        # Their retry is left to the caller: here the traceback keeps the batch's memory.
        if _is_out_of_memory(error) and len(jobs) > 1:
            loaded.most_pictures = half = len(jobs) // 2
            log.warning("memory does not suffice for %d pictures; drawing %d", len(jobs), half)
            return [jobs[:half], jobs[half:]]
        if len(jobs) > 1:
            return [[job] for job in jobs]
        _refuse(jobs[0], error, has_begun=watch.has_begun)
        return []
    for job, pixels, event in zip(jobs, drawn, told, strict=True):
        if event:
            job.tell(event)
        _finish(loaded, job, pixels, meters)
    return []


def _tell_started(loaded: Loaded, jobs: list[Job], meters: Meters) -> None:
    now, label = time.monotonic(), loaded.target.label
    meters.observe("ediffi_serve_batch_pictures", len(jobs), model=label)
    for job in jobs:
        if job.started is None:
            job.started = now
            meters.observe("ediffi_serve_waited_seconds", now - job.arrived)
        job.model = label
        job.tell(Started(picture=job.picture, model=loaded.target.id, batch=len(jobs)))


def _finish(loaded: Loaded, job: Job, pixels: Pictures, meters: Meters) -> None:
    seconds, started = time.monotonic() - job.arrived, job.started
    assert started is not None
    event = Finished(
        picture=job.picture,
        png="",
        model=loaded.target.id,
        prompt=job.row.prompt,
        seed=job.row.seed,
        number=job.row.number,
        seconds=seconds,
        waited=started - job.arrived,
    )
    if job.finish(Drawn(event, pixels)):
        meters.observe("ediffi_serve_picture_seconds", seconds, model=job.model)


def _refuse(job: Job, error: Exception, *, has_begun: bool) -> None:
    """Settle a job that cannot be drawn, not even alone."""
    if isinstance(error, ValueError) and not has_begun:
        job.refuse(Refused(str(error)))
        return
    log_error("drawing failed", error)
    if _is_out_of_memory(error):
        said = "memory does not suffice for this picture; ask for a smaller stage"
    elif isinstance(error, ValueError):
        said = f"nothing could be drawn: {error}"
    else:
        said = "nothing could be drawn, for a reason that the service's log has"
    job.refuse(DrawingFailed(said), "failed")


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory was lacking, on a GPU or on the host."""
    is_torchs = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return is_torchs or isinstance(error, torch.OutOfMemoryError | MemoryError)
