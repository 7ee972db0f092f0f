"""The service in one process, without Ray: for the studio on one's own machine."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn

from pipelines.serving.access import token_of
from pipelines.serving.local import LocalEngine
from pipelines.serving.meters import LocalMeters
from pipelines.spec.serving import Serving

if TYPE_CHECKING:
    from fastapi import FastAPI

LOOK_EVERY_S = 0.1
"""While a model is loaded: how often to look for a signal to end."""


def run(
    serving: Serving,
    create: Callable[..., FastAPI],
    opened: socket.socket,
    ready: Callable[[], None],
    is_stopped: Callable[[], bool],
) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish the pictures that were asked for.

    Args:
        create: makes the HTTP side, such as :func:`~pipelines.serving.app.create_app`.
        opened: the socket to serve at, from :func:`~pipelines.serving.access.listening`.
        ready: is called once the model is loaded.
        is_stopped: whether a signal to end has come, of which uvicorn knows nothing while the model
            is being loaded.

    Raises:
        ValueError: There is no such model, or no token where one is needed.
    """
    asyncio.run(_run(serving, create, opened, ready, is_stopped))


async def _run(
    serving: Serving,
    create: Callable[..., FastAPI],
    opened: socket.socket,
    ready: Callable[[], None],
    is_stopped: Callable[[], bool],
) -> None:
    engine = LocalEngine(serving, LocalMeters())
    try:
        app = create(engine, serving, token=token_of(serving))
        loading = asyncio.ensure_future(engine.load())
        while not is_stopped() and not loading.done():
            await asyncio.wait({loading}, timeout=LOOK_EVERY_S)
        if is_stopped():
            loading.cancel()
            return
        loading.result()  # raises what went wrong
        patience_s = math.ceil(serving.queue.deadline_s)
        config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=patience_s)
        ready()
        await uvicorn.Server(config).serve(sockets=[opened])
    finally:
        await engine.close(serving.queue.deadline_s, wait_for_loading=False)
