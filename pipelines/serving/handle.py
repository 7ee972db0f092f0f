"""Orders handed to Ray Serve's replicas; what a dead replica has not finished, another draws."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from ray.exceptions import NodeDiedError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from pipelines.models.metadata import ModelId
from pipelines.serving.engine import ModelInfo, Order, Status
from pipelines.serving.errors import (
    DeadlineExceeded,
    DrawingFailed,
    NotReady,
    QueueFull,
    Refused,
)
from pipelines.serving.events import Event, Finished, Queued, Started
from pipelines.serving.logs import log

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle


LOST = (RayActorError, WorkerCrashedError, NodeDiedError)
"""How Ray says that a replica has died, or cannot be reached."""

ATTEMPTS = 4
"""How often an order is handed to a replica, for orders that kill every replica that draws them."""

REPLICA_GRACE_S = 2.0
"""By how much a replica may be late with its own word that the deadline has passed."""

STATUS_PATIENCE_S = 3.0
"""How long replicas may take to say how they are; those that are starting say nothing."""

STATUS_AGE_S = 0.5
"""How old a status may be: every request asks for it, and replicas shall draw."""

STATUS_HOLDS_S = 30.0
"""How long the last status holds while no replica answers, since they are busy or being replaced:
requests wait for them meanwhile."""

UNAVAILABLE_RETRY_S = 5.0
"""When to come again if Serve has given up starting replicas; it may be told to try again."""

FULL_RETRY_S = 1.0
"""When to come again, if it is Serve's own queue that is full: no replica has reckoned it."""


class HandleEngine:
    """An :class:`~pipelines.serving.engine.Engine` over a deployment of
    :class:`~pipelines.serving.ray_app.Painter`."""

    def __init__(self, painters: DeploymentHandle) -> None:
        self._painters = painters
        self._status = _together([])
        self._asked = self._answered = -math.inf
        self._asking = asyncio.Lock()

    async def draw(self, order: Order) -> AsyncIterator[Event]:
        """As :meth:`Engine.draw`.

        If the replica dies, the pictures that are not finished are drawn by another, bit-equal
        since their seeds are fixed: their steps are told again.
        """
        end = time.monotonic() + order.deadline_s
        left = list(range(len(order.rows)))
        for attempt in range(1, ATTEMPTS + 1):
            rest = replace(
                order,
                rows=[order.rows[i] for i in left],
                deadline_s=max(end - time.monotonic(), 0.001),
            )
            numbers = tuple(left)
            try:
                async with aclosing(self._once(rest, end + REPLICA_GRACE_S)) as events:
                    async for event in events:
                        told = _renumbered(event, numbers)
                        if isinstance(told, Finished):
                            left.remove(told.picture)
                        if isinstance(told, Started) and not self._knows(told.model):
                            self._asked = -math.inf  # a newer model: the next status is asked anew
                        yield told
                return
            except LOST as error:
                log.warning(
                    "a replica was lost with %d pictures, attempt %d of %d: %s",
                    len(left), attempt, ATTEMPTS, type(error).__name__,
                )  # fmt: skip
                if not left:
                    return
        raise DrawingFailed(
            f"{ATTEMPTS} replicas were lost while they drew this; ask for fewer or smaller pictures"
        )

    async def _once(self, order: Order, end: float) -> AsyncGenerator[Event]:
        """Events of one replica."""
        answer = self._painters.options(stream=True).draw.remote(order)
        try:
            while True:
                try:
                    async with asyncio.timeout(end - time.monotonic()):
                        event = await anext(answer)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise DeadlineExceeded(
                        f"the pictures were not finished in {order.deadline_s:g} s"
                    ) from None
                except BackPressureError:
                    raise QueueFull(
                        "too many requests wait; come again later", retry_after_s=FULL_RETRY_S
                    ) from None
                except DeploymentUnavailableError:
                    raise NotReady(
                        "no replica could be started; come again later",
                        retry_after_s=UNAVAILABLE_RETRY_S,
                    ) from None
                if isinstance(event, Refused):
                    raise event
                yield event
        except BaseException:  # closed, cancelled or given up: the replica need not go on
            answer.cancel()
            raise

    async def status(self) -> Status:
        """All replicas together, asked at most every :data:`STATUS_AGE_S`; not ready while none
        answers."""
        async with self._asking:
            now = time.monotonic()
            if now - self._asked > STATUS_AGE_S:
                found, self._asked = await self._ask(), time.monotonic()
                if found or self._asked - self._answered > STATUS_HOLDS_S:
                    self._status, self._answered = _together(found), self._asked
        return self._status

    def _knows(self, model: ModelId) -> bool:
        return any(info.id == model for info in self._status.models)

    async def _ask(self) -> list[Status]:
        """What the replicas say that answer in time."""
        try:
            answers = await self._painters.broadcast("status").results_async(
                timeout_s=STATUS_PATIENCE_S, return_exceptions=True
            )
        except (TimeoutError, DeploymentUnavailableError):
            return []
        return [status for status in answers if isinstance(status, Status)]


def _together(found: Sequence[Status]) -> Status:
    if not found:
        return Status(ready=False, waiting=0, drawing=0, models=[])
    models: dict[ModelId, ModelInfo] = {}
    for status in sorted(found, key=lambda status: not status.ready):
        for info in status.models:  # replicas change to a newer model one after another
            models.setdefault(info.id, info)
    return Status(
        ready=any(status.ready for status in found),
        waiting=sum(status.waiting for status in found),
        drawing=sum(status.drawing for status in found),
        models=list(models.values()),
        trouble=next((s.trouble for s in found if s.trouble), None),
    )


def _renumbered(event: Event, numbers: tuple[int, ...]) -> Event:
    """With the number that a picture has in the whole order."""
    if isinstance(event, Queued):
        return event
    return event.model_copy(update={"picture": numbers[event.picture]})
