"""The service as a Ray Serve application: replicas that draw, and the HTTP side before them.

A Serve configuration names :func:`build`, with the keys of
:class:`~pipelines.spec.serving.Serving` as its ``args``.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from ray import serve
from ray.serve.config import AutoscalingConfig

from pipelines.models import signing
from pipelines.serving.access import token_of
from pipelines.serving.app import create_app
from pipelines.serving.engine import Order, Status
from pipelines.serving.errors import Refused
from pipelines.serving.events import Event
from pipelines.serving.handle import HandleEngine
from pipelines.spec.loading import check_serving
from pipelines.spec.serving import Serving

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

NAME = "ediffi"
"""Name of the application."""

SPARE_REQUESTS = 32
"""Requests that a replica takes beyond a full queue and a batch, to refuse them with the time after
which to come again."""

HTTP_REQUESTS = 1000
"""HTTP requests at once; how many pictures wait is limited by the replicas' queues."""


STARTS = 3
"""How often a replica is started before the service is said to have failed."""


class Painter:
    """A replica: a model of its own, a queue, and the thread that draws."""

    async def __init__(self, serving: Serving) -> None:  # type: ignore[misc]  # Serve awaits it
        import torch

        from pipelines.runs.ray_meters import RayMeters
        from pipelines.serving.local import LocalEngine
        from pipelines.serving.meters import METRICS

        log_as_serve()
        torch.set_num_threads(serving.replicas.cpus)
        self.drain_s = serving.queue.deadline_s
        self.engine = LocalEngine(serving, RayMeters(METRICS))
        await self.engine.load()

    async def draw(self, order: Order) -> AsyncIterator[Event | Refused]:
        """Draw an order; a refusal is the last item, since Serve logs what is raised as a fault."""
        drawing = cast(AsyncGenerator[Event, None], self.engine.draw(order))
        try:
            async with aclosing(drawing) as events:
                async for event in events:
                    yield event
        except Refused as refusal:
            yield refusal

    async def status(self) -> Status:
        """As of :class:`~pipelines.serving.engine.Engine`."""
        return await self.engine.status()

    def check_health(self) -> None:
        """Serve replaces a replica for which this raises."""
        self.engine.check()

    async def __del__(self) -> None:
        """Called by Serve once the replica's requests have ended; it has no engine if that could
        not be made."""
        if hasattr(self, "engine"):
            await self.engine.close(self.drain_s)


def log_as_serve() -> None:
    """Write this replica's log where Serve writes its own: ``logs/serve/`` of Ray's session."""
    log = logging.getLogger("ediffi.serving")
    log.setLevel(logging.INFO)
    for handler in logging.getLogger("ray.serve").handlers:
        log.addHandler(handler)


class Ingress:
    """The HTTP side."""

    def __init__(
        self,
        painters: DeploymentHandle,
        serving: Serving,
        token: str | None,
        create: Callable[..., FastAPI],
    ) -> None:
        self.engine, self.serving, self.token = HandleEngine(painters), serving, token
        self.create = create
        log_as_serve()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self.create(self.engine, self.serving, token=self.token)


def build(args: Mapping[str, Any]) -> Application:
    """The application of a Serve configuration's ``args``, which are keys of
    :class:`~pipelines.spec.serving.Serving`.

    Raises:
        ValueError: A setting is invalid; or see :func:`application`.
    """
    serving = check_serving(args, "args")
    if serving.studio:
        raise ValueError(
            "`studio: true` needs the application with the page; write "
            "`import_path: pipelines.studio.ray_app:build`"
        )
    return application(serving, create_app)


def application(serving: Serving, create: Callable[..., FastAPI]) -> Application:
    """Replicas that draw, and the HTTP side.

    Args:
        create: Makes the HTTP side, such as :func:`~pipelines.serving.app.create_app`.

    Raises:
        ValueError: It would listen beyond this machine without a token, which is read here from
            the variable that the settings name; or the keys that replicas shall trust are none.
    """
    token = token_of(serving)
    replicas, queue = serving.replicas, serving.queue
    painters = serve.deployment(
        Painter,
        name="Painter",
        ray_actor_options={
            "num_cpus": replicas.cpus,
            "num_gpus": replicas.gpus,
            "runtime_env": {"env_vars": signing.for_replicas()},
        },
        autoscaling_config=AutoscalingConfig(
            min_replicas=replicas.min,
            max_replicas=replicas.max,
            target_ongoing_requests=replicas.target,
        ),
        max_ongoing_requests=queue.pictures + serving.batching.pictures + SPARE_REQUESTS,
        max_queued_requests=queue.pictures,
        max_constructor_retry_count=STARTS,
        graceful_shutdown_timeout_s=queue.deadline_s,
    ).bind(serving)
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=HTTP_REQUESTS,
        graceful_shutdown_timeout_s=queue.deadline_s,
    )
    return ingress.bind(painters, serving, token, create)
