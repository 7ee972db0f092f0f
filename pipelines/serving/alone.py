"""The service in one process, without Ray: for the studio on one's own machine."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn

from pipelines.serving.access import listening, token_of
from pipelines.serving.local import LocalEngine
from pipelines.serving.meters import LocalMeters
from pipelines.spec.serving import Serving

if TYPE_CHECKING:
    from fastapi import FastAPI


def run(serving: Serving, create: Callable[..., FastAPI], ready: Callable[[int], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish the pictures that were asked for.

    Args:
        create: makes the HTTP side, such as :func:`~pipelines.serving.app.create_app`.
        ready: is given the port once the model is loaded.

    Raises:
        ValueError: There is no such model, no token where one is needed, or the port is taken.
    """
    asyncio.run(_run(serving, create, ready))


async def _run(
    serving: Serving, create: Callable[..., FastAPI], ready: Callable[[int], None]
) -> None:
    token = token_of(serving)
    with listening(serving.host, serving.port) as opened:
        engine = LocalEngine(serving, LocalMeters())
        try:
            await engine.load()
            app = create(engine, serving, token=token)
            patience_s = math.ceil(serving.queue.deadline_s)
            config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=patience_s)
            ready(opened.getsockname()[1])
            await uvicorn.Server(config).serve(sockets=[opened])
        finally:
            await engine.close(serving.queue.deadline_s)
