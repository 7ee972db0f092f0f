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

    def __init__(
        self,
        request: Request,
        first: Message | None,
        messages: AsyncGenerator[Message | None, None],
        *,
        with_message: bool,
    ) -> None:
        """
        Args:
            first, messages: as of :func:`stream`.
        """
        super().__init__(self._chunks(first), headers={"X-Accel-Buffering": "no"})
        self.record, self.messages = record_of(request), messages
        self.with_message = with_message

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.messages):
            await self.stream_response(send)

    async def _chunks(self, first: Message | None) -> AsyncIterator[bytes]:
        yield encode(first)
        try:
            async for message in self.messages:
                yield encode(message)
        except ClientGone:
            self.record.is_gone = True
        except Exception as error:
            refused = as_refused(error, self.record.id, with_message=self.with_message)
            self.record.code = refused.code
            yield encode(("error", shape_of(refused)))


async def stream(
    request: Request, messages: AsyncGenerator[Message | None, None], *, with_message: bool
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
    return EventStream(request, first, messages, with_message=with_message)


def encode(message: Message | None) -> bytes:
    """A message as bytes of the stream."""
    if message is None:
        return HEARTBEAT
    name, data = message
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
