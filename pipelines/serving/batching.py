"""The queue: which pictures wait, in which order they are drawn, and which share a batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from pipelines.models.rows import Row
from pipelines.serving.errors import NotReady, QueueFull, Refused
from pipelines.serving.events import Event
from pipelines.serving.mailbox import Drawn, Mailbox
from pipelines.serving.meters import Meters
from pipelines.serving.models import Loaded, LoadedModels
from pipelines.serving.targets import Role
from pipelines.spec.serving import Batching

SMOOTHING = 0.2
"""Weight of the newest batch in the mean of seconds a picture."""


def shape_of(row: Row) -> Hashable:
    """What rows of one batch have in common."""
    return row.options


@dataclass(eq=False, kw_only=True)
class Job:
    """One picture of an order, until it is settled: drawn, failed, refused or no longer wanted."""

    row: Row
    picture: int
    """Number of the picture in its order."""

    role: Role
    """Which of the served models draws it."""

    stage: str | None
    previews: bool
    attention: bool
    deadline: float
    """Time of :func:`time.monotonic` from which on nobody wants it."""

    mailbox: Mailbox
    meters: Meters
    model: str
    """The model's label in metrics."""

    arrived: float = field(default_factory=time.monotonic)
    started: float | None = None
    previewed: bool = False
    outcome: str | None = None
    _settling: threading.Lock = field(default_factory=threading.Lock)

    @property
    def shape(self) -> Hashable:
        """Jobs of equal shapes may share a batch."""
        return self.role, self.stage, self.attention, shape_of(self.row)

    def wanted(self) -> bool:
        """Whether it is still to be drawn."""
        return self.outcome is None and time.monotonic() < self.deadline

    def settle(self, outcome: str) -> bool:
        """Set the outcome, if there is none yet; whether it is this one."""
        with self._settling:
            if self.outcome is not None:
                return False
            self.outcome = outcome
        self.meters.add("ediffi_serve_pictures", model=self.model, outcome=outcome)
        return True

    def tell(self, event: Event | Drawn) -> None:
        """Tell the order's reader, unless the job is settled."""
        if self.outcome is None:
            self.mailbox.post(event)

    def finish(self, drawn: Drawn) -> bool:
        """Settle with a picture, if the job is not settled; whether it was not."""
        is_first = self.settle("finished")
        if is_first:
            self.mailbox.post(drawn)
        return is_first

    def refuse(self, error: Refused, outcome: str = "refused") -> None:
        """Settle with an error."""
        if self.settle(outcome):
            self.mailbox.post(error)


class PictureQueue:
    """Jobs in order of arrival. Orders and the thread that draws meet here."""

    def __init__(self, batching: Batching, capacity: int, meters: Meters) -> None:
        """
        Args:
            capacity: pictures that wait, at most.
        """
        self.batching, self.capacity, self.meters = batching, capacity, meters
        self.seconds_a_picture = 0.0
        self._waiting: list[Job] = []
        self._at_work: list[Job] = []
        self._closed = False
        self._changed = threading.Condition()

    @property
    def waiting(self) -> int:
        """Pictures in the queue."""
        return len(self._waiting)

    @property
    def drawing(self) -> int:
        """Pictures of the batch at work."""
        return len(self._at_work)

    def put(self, jobs: Sequence[Job]) -> int:
        """Add an order's jobs, all or none; returns how many pictures are before them.

        Raises:
            Refused: There is no room, now or ever, or the queue is closed.
        """
        with self._changed:
            if self._closed:
                raise NotReady("the service is ending; ask another, or later", retry_after_s=5)
            if len(jobs) > self.capacity:
                raise Refused(
                    f"{len(jobs)} pictures are more than the queue holds; ask for "
                    f"{self.capacity} at most"
                )
            if (waiting := len(self._waiting)) + len(jobs) > self.capacity:
                raise QueueFull(
                    f"{waiting} pictures wait, and {self.capacity} may; try again later",
                    retry_after_s=max(1.0, self.seconds_a_picture * waiting),
                )
            ahead = len(self._waiting) + len(self._at_work)
            self._waiting += jobs
            self._notify()
        return ahead

    def take(self, models: LoadedModels) -> tuple[Loaded, list[Job]] | None:
        """Wait for the next batch; None once the queue is closed. The one before is done.

        The oldest picture whose model is loaded is drawn next, with all of its shape that wait,
        after the time that it waits for company.
        """
        with self._changed:
            self._at_work = []
            while True:
                self._notify()
                if self._closed:
                    return None
                self._waiting = [job for job in self._waiting if job.wanted()]
                model, batch = self._next(models)
                if model is None:
                    self._changed.wait(self._until_deadline())
                    continue
                company_s = batch[0].arrived + self.batching.wait_ms / 1e3 - time.monotonic()
                if company_s > 0 and len(batch) < self._most(model):
                    self._changed.wait(company_s)
                    continue
                self._waiting = [job for job in self._waiting if job not in batch]
                self._at_work = batch
                self._notify()
                return model, batch

    def _next(self, models: LoadedModels) -> tuple[Loaded | None, list[Job]]:
        """The model and the jobs to draw next, as far as they are here."""
        is_first = True
        for job in self._waiting:
            if (model := models.get(job.role)) is not None:
                same = [other for other in self._waiting if other.shape == job.shape]
                return model, same[: self._most(model)]
            if is_first:  # one at a time, else two models could unload each other for ever
                models.want(job.role)
            is_first = False
        return None, []

    def _most(self, model: Loaded) -> int:
        return min(self.batching.pictures, model.most_pictures)

    def _until_deadline(self) -> float | None:
        return min((job.deadline - time.monotonic() for job in self._waiting), default=None)

    def took(self, seconds: float, pictures: int) -> None:
        """Note how long a batch took."""
        each, before = seconds / pictures, self.seconds_a_picture
        self.seconds_a_picture = before + SMOOTHING * (each - before) if before else each

    def withdraw(self, jobs: Sequence[Job]) -> None:
        """Remove jobs that wait."""
        with self._changed:
            self._waiting = [job for job in self._waiting if job not in jobs]
            self._notify()

    def refuse(self, error: Refused, role: Role | None = None) -> None:
        """Settle the jobs that wait, of one role or all, with an error."""
        with self._changed:
            refused = [job for job in self._waiting if role in (None, job.role)]
            self._waiting = [job for job in self._waiting if job not in refused]
            self._notify()
        for job in refused:
            job.refuse(error)

    def wake(self) -> None:
        """Look again for a batch: a model has been loaded."""
        with self._changed:
            self._changed.notify_all()

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no picture waits or is drawn; whether that came about."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not (self._waiting or self._at_work), timeout=timeout_s
            )

    def close(self, error: Refused) -> None:
        """Settle all jobs, waiting and at work, with an error, and take no more."""
        with self._changed:
            self._closed = True
            at_work = list(self._at_work)
        self.refuse(error)
        for job in at_work:
            job.refuse(error)

    def _notify(self) -> None:
        self.meters.set("ediffi_serve_queue_pictures", len(self._waiting))
        self.meters.set("ediffi_serve_drawing_pictures", len(self._at_work))
        self._changed.notify_all()
