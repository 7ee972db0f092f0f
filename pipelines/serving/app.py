"""The service over HTTP: OpenAI's images API, the service's own, health and metrics."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response

from pipelines.serving import ediffi_api, openai_api
from pipelines.serving.engine import Engine
from pipelines.serving.filters import Judges
from pipelines.serving.finishing import Finisher
from pipelines.serving.guards import Guard, is_loopback
from pipelines.serving.http_errors import http_exception
from pipelines.serving.service import Service
from pipelines.spec.serving import Serving


def create_app(
    engine: Engine, serving: Serving, *, token: str | None, public: Sequence[str] = ()
) -> FastAPI:
    """The service as an ASGI application.

    Args:
        token: what callers send as ``Authorization: Bearer``; None for no check, which is for
            loopback only.
        public: paths that need no token, such as a page's own files; as of
            :class:`~pipelines.serving.guards.Guard`.

    Raises:
        ValueError: The token is missing for another host than loopback, or is empty; or a filter
            cannot be loaded.
    """
    if token is not None and not token.strip():
        raise ValueError(
            f"the token is empty; set {serving.token_variable} to a long random text, or unset it"
        )
    if token is None and not is_loopback(serving.host):
        raise ValueError(
            f"`host: {serving.host}` lets other machines in, and there is no token; set "
            f"{serving.token_variable}, or write `host: 127.0.0.1`"
        )
    judges = Judges.load(serving.filters, log_messages=serving.log_prompts)
    finisher = Finisher(judges=judges, marks=serving.marks)
    service = Service(engine=engine, serving=serving, finisher=finisher)
    app = FastAPI(
        title="ediffi",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: http_exception},
    )
    app.add_middleware(Guard, serving=serving, token=token, public=public)
    app.include_router(openai_api.router(service))
    app.include_router(ediffi_api.router(service))

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        return JSONResponse({"alive": True})

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        await service.status()
        return JSONResponse({"ready": True})

    if (prometheus := getattr(engine, "prometheus", None)) is not None:

        @app.get("/metrics")
        async def metrics() -> Response:
            text = prometheus()
            return PlainTextResponse(await text if inspect.isawaitable(text) else text)

    return app
