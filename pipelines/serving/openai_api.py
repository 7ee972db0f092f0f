"""OpenAI's images API, as far as it fits: ``/v1/models`` and ``/v1/images/generations``."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from pipelines.models.limits import EXACT
from pipelines.serving.engine import ModelInfo, StageInfo
from pipelines.serving.events import Finished, Step
from pipelines.serving.http_errors import Invalid
from pipelines.serving.requests import Sample, find_model, validated
from pipelines.serving.service import Drawing, Service, pictures_of
from pipelines.serving.sse import Message, stream
from pipelines.spec.base import Strict

STARTED = int(time.time())
"""``created`` of the models: the registry keeps no time of them."""


class Generation(Strict):
    """Body of ``POST /v1/images/generations``."""

    prompt: str
    model: str | None = None
    n: int | None = Field(None, ge=1)
    size: str | None = None
    """``64x64``, of a stage of the cascade, or ``auto``, of the last."""

    seed: int | None = Field(None, ge=0, le=EXACT)
    """Not in OpenAI's API; the client sends it as ``extra_body={"seed": 3}``."""

    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3)
    """Pictures that a stream has before the finished one, at most."""

    response_format: str | None = None
    output_format: str | None = None
    quality: str | None = None
    background: str | None = None
    moderation: str | None = None
    style: str | None = None
    user: str | None = None
    """Taken and not used, as ``safety_identifier``: the service knows no users."""

    safety_identifier: str | None = None


OFFERED: dict[str, tuple[tuple[str, ...], str]] = {
    "response_format": (("b64_json",), "pictures are not stored, so they have no address"),
    "output_format": (("png",), "only PNG files are bit-equal and say how they were drawn"),
    "quality": (("auto",), "`sampling` of /v1/ediffi/sample sets the number of steps"),
    "background": (("auto", "opaque"), "pictures have no transparency"),
    "moderation": (("auto",), "the service's filters are the same for every request"),
    "style": ((), "write the style into the prompt, or use `style` of /v1/ediffi/sample"),
}
"""Field → the values that are offered, and why there are no others."""


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1")

    @routes.get("/models")
    async def models() -> JSONResponse:
        status = await service.engine.status()
        return JSONResponse({"object": "list", "data": [_listed(m) for m in status.models]})

    @routes.get("/models/{name:path}")
    async def model(name: str) -> JSONResponse:
        return JSONResponse(_listed(find_model(await service.engine.status(), name)))

    @routes.post("/images/generations")
    async def generations(request: Request) -> Response:
        asked = validated(Generation, await service.read(request))
        _check_offered(asked)
        if asked.stream and asked.n not in (None, 1):
            raise Invalid("a stream is of one picture; write `n: 1`, or leave `stream` out", "n")
        status = await service.status()
        model = find_model(status, asked.model)
        order = await service.order(request, _sample(asked, model), status)
        drawing = service.draw(request, order, status)
        if not asked.stream:
            return JSONResponse(await _pictures(drawing, len(order.rows)))
        messages = _messages(drawing, _run(model, order.stage), asked.partial_images or 0)
        return await stream(request, messages, with_message=service.serving.log_prompts)

    return routes


def _listed(model: ModelInfo) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": STARTED, "owned_by": "ediffi"}


def _check_offered(asked: Generation) -> None:
    for name, (values, why) in OFFERED.items():
        given = getattr(asked, name)
        if given is not None and given not in values:
            instead = f"write {' or '.join(values)}" if values else "leave it out"
            raise Invalid(f"`{name}` is {given[:100]!r}, but {why}; {instead}", name)
    if asked.partial_images and not asked.stream:
        raise Invalid("`partial_images` is given without `stream: true`", "partial_images")


def _sample(asked: Generation, model: ModelInfo) -> Sample:
    """The same as a request of the service's own API."""
    return Sample(
        prompt=asked.prompt,
        n=asked.n,
        seed=asked.seed,
        model=asked.model,
        stage=_stage(asked.size, model),
        previews=bool(asked.stream and asked.partial_images),
    )


def _stage(size: str | None, model: ModelInfo) -> str | None:
    """The stage that draws pictures of a size; None for the last."""
    if size in (None, "auto"):
        return None
    sizes = {f"{stage.resolution}x{stage.resolution}": stage.name for stage in model.stages}
    if size not in sizes:
        raise Invalid(f"`size` is {size[:100]!r}; there are {', '.join(sizes)} and auto", "size")
    return sizes[size]


def _run(model: ModelInfo, last: str | None) -> list[StageInfo]:
    """The stages up to the last one; all by default."""
    names = [stage.name for stage in model.stages]
    return model.stages if last is None else model.stages[: names.index(last) + 1]


async def _pictures(drawing: Drawing, count: int) -> dict[str, Any]:
    pictures, _ = await pictures_of(drawing, count)
    return {
        "created": int(time.time()),
        "output_format": "png",
        "data": [{"b64_json": p.png, "seed": p.seed, "number": p.number} for p in pictures],
    }


async def _messages(
    drawing: Drawing, stages: Sequence[StageInfo], partial: int
) -> AsyncGenerator[Message | None, None]:
    """OpenAI's events: some pictures as they form, evenly over all stages, and the finished one.

    Args:
        stages: those that are run.
        partial: pictures before the finished one, at most.
    """
    sides = {stage.name: stage.resolution for stage in stages}
    run = list(sides)
    sent = 0
    async with aclosing(drawing) as events:
        async for event in events:
            if event is None:
                yield None
            elif isinstance(event, Step) and event.preview and sent < partial:
                done = run.index(event.stage) + (event.step + 1) / event.steps
                if done / len(run) >= (sent + 1) / (partial + 1):
                    kind = "image_generation.partial_image"
                    told = _told(kind, event.preview, sides[event.stage])
                    yield kind, {**told, "partial_image_index": sent}
                    sent += 1
            elif isinstance(event, Finished):
                kind = "image_generation.completed"
                told = _told(kind, event.png, sides[run[-1]])
                yield kind, {**told, "seed": event.seed, "number": event.number}


def _told(kind: str, png: str, side: int) -> dict[str, Any]:
    """What both events of OpenAI's have."""
    return {
        "type": kind,
        "b64_json": png,
        "created_at": int(time.time()),
        "size": f"{side}x{side}",
        "output_format": "png",
        "background": "opaque",
        "quality": "auto",
    }
