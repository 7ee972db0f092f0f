"""The service's own API: ``POST /v1/ediffi/sample`` and ``GET /v1/ediffi/model``."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from ediffi_core.solver_names import SOLVER_NAMES
from pipelines.models.painting import STRENGTH
from pipelines.serving.requests import Sample, validated
from pipelines.serving.service import Drawing, Service, pictures_of
from pipelines.serving.sse import Message, stream


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1/ediffi")

    @routes.get("/model")
    async def model() -> JSONResponse:
        return JSONResponse(await _model(service))

    @routes.post("/sample")
    async def sample(request: Request) -> Response:
        asked = validated(Sample, await service.read(request))
        status = await service.status()
        order = await service.order(request, asked, status)
        drawing = service.draw(request, order, status)
        if not asked.stream:
            return JSONResponse(await _pictures(drawing, len(order.rows)))
        messages = _messages(drawing)
        return await stream(request, messages, with_message=service.serving.log_prompts)

    return routes


async def _model(service: Service) -> dict[str, Any]:
    """What can be asked for: models with their stages, limits and defaults."""
    status, serving = await service.engine.status(), service.serving
    return {
        **status.model_dump(mode="json"),
        "limits": {
            **serving.limits.model_dump(mode="json"),
            "deadline_s": serving.queue.deadline_s,
        },
        "defaults": {
            "n": 1,
            "strength": STRENGTH,
            "deadline_s": serving.queue.deadline_s,
            "previews": service.shows_previews,
        },
        "solvers": list(SOLVER_NAMES),
    }


async def _pictures(drawing: Drawing, count: int) -> dict[str, Any]:
    """All pictures of an order in one answer."""
    ordered, attention = await pictures_of(drawing, count)
    return {
        "created": int(time.time()),
        "model": ordered[0].model.model_dump(mode="json"),
        "data": [
            {
                "b64_png": one.png,
                **one.model_dump(mode="json", include={"seed", "number", "seconds", "waited"}),
                **(
                    {"attention": attention[one.picture].model_dump(mode="json")}
                    if one.picture in attention
                    else {}
                ),
            }
            for one in ordered
        ],
    }


async def _messages(drawing: Drawing) -> AsyncGenerator[Message | None, None]:
    async with aclosing(drawing) as events:
        async for event in events:
            yield None if event is None else (event.type, event.model_dump(mode="json"))
    yield "done", {}
