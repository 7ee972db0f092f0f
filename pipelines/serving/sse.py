"""Answers as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from pipelines.serving.guards import record_of
from pipelines.serving.http_errors import ClientGone, as_refused, shape_of

Message = tuple[str, Any]
"""Name of an event and its data, which JSON can hold."""

HEARTBEAT = b": still at work\n\n"


class EventStream(StreamingResponse):
    """Sends messages as they come, and closes their source when the caller goes away.

    Starlette's own would also read the connection, which :meth:`Service.draw` does already.
    """

    media_type = "text/event-stream"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.stream_response(send)


async def stream(
    request: Request,
    messages: AsyncGenerator[Message | None, None],
    *,
    with_message: bool,
) -> EventStream:
    """The answer that sends these messages; None is a heartbeat.

    The first one is awaited before the answer begins, so that a refusal has its own status. A later
    error is the event ``error``.

    Args:
        with_message: as of :func:`~pipelines.serving.http_errors.as_refused`.

    Raises:
        Refused: There is no first message.
    """
    first = await anext(messages, None)
    chunks = _chunks(request, first, messages, with_message)
    return EventStream(chunks, headers={"X-Accel-Buffering": "no"})


async def _chunks(
    request: Request,
    first: Message | None,
    messages: AsyncGenerator[Message | None, None],
    with_message: bool,
) -> AsyncIterator[bytes]:
    record = record_of(request)
    async with aclosing(messages):
        yield encode(first)
        try:
            async for message in messages:
                yield encode(message)
        except ClientGone:
            record.is_gone = True
        except Exception as error:
            refused = as_refused(error, record.id, with_message=with_message)
            record.code = refused.code
            yield encode(("error", shape_of(refused)))


def encode(message: Message | None) -> bytes:
    """A message as bytes of the stream."""
    if message is None:
        return HEARTBEAT
    name, data = message
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
