"""The engine within one process: a queue, loaded models, and a thread that draws."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator

from pipelines.models.painting import encode_png
from pipelines.models.text_to_image import TextToImage
from pipelines.serving.batching import Job, PictureQueue
from pipelines.serving.drawing import draw_batch
from pipelines.serving.engine import Order, Status
from pipelines.serving.errors import DeadlineExceeded, NotReady, Refused
from pipelines.serving.events import Event, Finished, Queued
from pipelines.serving.logs import log
from pipelines.serving.mailbox import Drawn, Mailbox
from pipelines.serving.meters import LocalMeters, Meters
from pipelines.serving.models import Load, LoadedModels
from pipelines.spec.serving import Serving

ENDING = "the service is ending; ask again in a moment"
NOT_LOADED = "the model is still being loaded; ask again in a moment"
LATER_S = 5.0
"""When to come again if no model is loaded, or the service ends."""


class LocalEngine:
    """Draws orders in this process; an :class:`~pipelines.serving.engine.Engine`.

    Orders may come from any event loop. One thread draws, batch after batch; another loads models.
    """

    def __init__(
        self, serving: Serving, meters: Meters | None = None, *, load: Load = TextToImage.load
    ) -> None:
        """Start to load the served model; :meth:`load` waits for it.

        Args:
            meters: where numbers go; by default they are kept for :meth:`prometheus`.
            load: reads an ensemble; arguments as of :meth:`TextToImage.load`.

        Raises:
            ValueError: There is no such model in the store.
        """
        self.serving, self.meters = serving, meters or LocalMeters()
        self.queue = PictureQueue(serving.batching, serving.queue.pictures, self.meters)
        self.models = LoadedModels(
            serving,
            self.meters,
            changed=self.queue.wake,
            failed=lambda role, error: self.queue.refuse(error, role),
            load=load,
        )
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="drawing", daemon=True)
        self._thread.start()

    async def load(self) -> None:
        """Wait until the served model is loaded; ValueError if it cannot be."""
        await asyncio.to_thread(self.models.wait_ready)

    async def draw(self, order: Order) -> AsyncIterator[Event]:
        """As of :class:`~pipelines.serving.engine.Engine`."""
        if self._is_closing:
            raise NotReady(ENDING, retry_after_s=LATER_S)
        if not self.models.is_ready:
            raise NotReady(NOT_LOADED, retry_after_s=LATER_S)
        jobs = self._jobs(order, Mailbox(asyncio.get_running_loop()))
        try:
            ahead = self.queue.put(jobs)
        except Refused:
            for job in jobs:
                job.settle("refused")
            raise
        try:
            yield Queued(ahead=ahead)
            async for event in self._events(jobs):
                yield event
        finally:
            self.queue.withdraw(jobs)
            for job in jobs:
                job.settle("cancelled")

    def _jobs(self, order: Order, mailbox: Mailbox) -> list[Job]:
        role = self.models.role_of(order.model)
        patience_s = min(order.deadline_s, self.serving.queue.deadline_s)
        return [
            Job(
                row=row,
                picture=picture,
                role=role,
                stage=order.stage,
                previews=order.previews,
                attention=order.attention,
                deadline=time.monotonic() + patience_s,
                mailbox=mailbox,
                meters=self.meters,
                model=self.models.label(role),
            )
            for picture, row in enumerate(order.rows)
        ]

    async def _events(self, jobs: list[Job]) -> AsyncIterator[Event]:
        """The events of an order until all its jobs are settled."""
        mailbox, deadline, left = jobs[0].mailbox, jobs[0].deadline, len(jobs)
        failure: Refused | None = None
        while left:
            try:
                message = await mailbox.get(deadline)
            except TimeoutError:
                for job in jobs:
                    job.settle("deadline")
                patience_s = deadline - jobs[0].arrived
                raise DeadlineExceeded(f"not finished within {patience_s:.1f} s") from None
            if isinstance(message, Refused):
                failure, left = failure or message, left - 1
                continue
            event = await _encoded(message)
            left -= isinstance(event, Finished)
            yield event
        if failure:
            raise failure

    async def status(self) -> Status:
        """As of :class:`~pipelines.serving.engine.Engine`."""
        return Status(
            ready=self.models.is_ready and not self._is_closing,
            waiting=self.queue.waiting,
            drawing=self.queue.drawing,
            models=self.models.described(),
            trouble=self.models.trouble,
        )

    def check(self) -> None:
        """Raise RuntimeError if a thread of the engine has died."""
        if not self._is_closing and not (self._thread.is_alive() and self.models.is_alive):
            raise RuntimeError("a thread of the engine has died; its log says why")

    def prometheus(self) -> str:
        """The numbers in Prometheus' text format; empty if they go elsewhere."""
        return self.meters.text() if isinstance(self.meters, LocalMeters) else ""

    async def close(self, within_s: float = 30.0, *, wait_for_loading: bool = True) -> None:
        """End: take no more orders, finish those there are, then refuse what is left.

        Args:
            within_s: seconds to finish in.
            wait_for_loading: wait for the end of a model's loading, which cannot be stopped; else
                its thread may end with the process.
        """
        self._is_closing = True
        await asyncio.to_thread(self.queue.wait_idle, within_s)
        self.queue.close(NotReady(ENDING, retry_after_s=LATER_S))
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self.models.close, wait=wait_for_loading)

    def _work(self) -> None:
        try:
            while taken := self.queue.take(self.models):
                loaded, jobs = taken
                began = time.monotonic()
                draw_batch(loaded, jobs, self.meters)
                self.queue.took(time.monotonic() - began, len(jobs))
        except BaseException:
            log.critical("the thread that draws has died", exc_info=True)
        finally:
            self.queue.close(NotReady(ENDING, retry_after_s=LATER_S))


async def _encoded(message: Event | Drawn) -> Event:
    """An event with its picture as a PNG."""
    if not isinstance(message, Drawn):
        return message
    png = await asyncio.to_thread(encode_png, message.pixels)
    name = "png" if isinstance(message.event, Finished) else "preview"
    return message.event.model_copy(update={name: png})
