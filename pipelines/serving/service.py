"""From a request to the events of its drawing, whatever API it came by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import anyio
from anyio.to_thread import run_sync
from starlette.requests import Request

from pipelines.serving.engine import Engine, ModelInfo, Order, Status
from pipelines.serving.errors import NotReady
from pipelines.serving.events import Attention, Event, Finished, Started, Step
from pipelines.serving.finishing import Finisher, sampling_of
from pipelines.serving.guards import read_body, record_of
from pipelines.serving.http_errors import ClientGone, WrongMediaType
from pipelines.serving.limits import parse_json
from pipelines.serving.requests import Sample, find_model, to_order
from pipelines.spec.serving import Serving

HEARTBEAT_S = 10.0
"""Seconds without an event after which a stream has a comment, so that proxies keep it open."""

DECODING = 2
"""Requests whose pictures are decoded at once, which bounds memory."""


Drawing = AsyncGenerator[Event | None, None]
"""Events of an order; None is a heartbeat."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """An engine with the settings and filters of its HTTP side."""

    engine: Engine
    serving: Serving
    finisher: Finisher
    decoding: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(DECODING))

    async def read(self, request: Request) -> dict[str, Any]:
        """The JSON object in a request.

        Raises:
            Refused: It is too large, too slow, or none.
        """
        kind, _, _ = request.headers.get("content-type", "").partition(";")
        if kind.strip().lower() != "application/json":
            raise WrongMediaType(
                f"the body is {kind[:60]!r}; send JSON, as `Content-Type: application/json`"
            )
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise WrongMediaType("the body is compressed; send it without `Content-Encoding`")
        body = await read_body(request, self.serving.limits.body_bytes)
        return await run_sync(parse_json, body, limiter=self.decoding)

    async def status(self) -> Status:
        """How the engine is; :class:`NotReady` until it can draw."""
        status = await self.engine.status()
        if not status.ready:
            raise NotReady("the model is still being loaded; ask again")
        return status

    async def order(self, request: Request, asked: Sample, status: Status) -> Order:
        """The order of a body, which filters of prompts have let pass.

        Raises:
            Refused: The body or a prompt is refused.
        """
        record = record_of(request)
        if self.serving.log_prompts:
            record.prompt = asked.prompt
        record.model = find_model(status, asked.model).name
        make = partial(to_order, asked, status, self.serving, record.id)
        order = await run_sync(make, limiter=self.decoding)
        for text in filter(None, (asked.prompt, asked.then)):
            await run_sync(self.finisher.judges.judge_prompt, text)
        return replace(order, previews=order.previews and self.shows_previews)

    @property
    def shows_previews(self) -> bool:
        """Whether pictures are shown as they form: not where filters judge finished ones."""
        return not self.finisher.judges.picture

    async def draw(self, request: Request, order: Order, status: Status) -> Drawing:
        """Draw an order as long as its caller is there.

        Close the iterator; that takes the order out of the engine.

        Args:
            status: when the order was made.

        Yields:
            Events; None after every :data:`HEARTBEAT_S` without one.

        Raises:
            ClientGone: The caller has closed the connection.
            Refused: As of :meth:`Engine.draw`, or a filter refuses a picture.
        """
        events = self._finished(request, order, status.models)
        gone, upcoming = asyncio.ensure_future(_gone(request)), asyncio.ensure_future(_next(events))
        try:
            while True:
                done, _ = await asyncio.wait(
                    {upcoming, gone}, timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED
                )
                if gone in done:
                    raise ClientGone
                if not done:
                    yield None
                    continue
                if (event := upcoming.result()) is None:
                    return
                yield event
                upcoming = asyncio.ensure_future(_next(events))
        finally:
            gone.cancel()
            upcoming.cancel()
            await asyncio.gather(gone, upcoming, return_exceptions=True)
            await events.aclose()

    async def _finished(
        self, request: Request, order: Order, models: Sequence[ModelInfo]
    ) -> AsyncGenerator[Event, None]:
        drawing = cast(AsyncGenerator[Event, None], self.engine.draw(order))
        async with aclosing(drawing) as events:
            async for event in events:
                if isinstance(event, Started) and sampling_of(event.model, models) is None:
                    models = (await self.engine.status()).models  # a newer one took over
                elif isinstance(event, Step) and self.finisher.is_marking:
                    event = await run_sync(self.finisher.preview, event)
                elif isinstance(event, Finished):
                    event = await run_sync(self.finisher.finished, event, order, models)
                    record_of(request).pictures += 1
                yield event


async def pictures_of(drawing: Drawing, count: int) -> tuple[list[Finished], dict[int, Attention]]:
    """All of an order's pictures in their order, and where those attended that were asked to say.

    Args:
        count: pictures of the order.
    """
    found: dict[int, Finished] = {}
    attention: dict[int, Attention] = {}
    async with aclosing(drawing) as events:
        async for event in events:
            if isinstance(event, Finished):
                found[event.picture] = event
            elif isinstance(event, Attention):
                attention[event.picture] = event
    return [found[picture] for picture in range(count)], attention


async def _next(events: AsyncIterator[Event]) -> Event | None:
    try:
        return await anext(events)
    except StopAsyncIteration:
        return None


async def _gone(request: Request) -> None:
    """Wait until the caller closes the connection; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
