"""The studio: the service's HTTP API, and a page on which people paint with words.

The page is plain HTML, CSS and ES modules without a build step, and asks nobody but the service.
Gradio would have been less to write, but its image editor knows no colours that stand for phrases
of a prompt, which is what painting with words needs, and Gradio 6 excludes the Pillow we pin.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from pipelines.serving.app import create_app
from pipelines.serving.engine import Engine
from pipelines.spec.serving import Serving

PAGE = Path(__file__).parent / "page"

PUBLIC = ("/", "/page/")
"""Paths that need no token: they hold nothing of the model. The page asks for the token."""

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",  # else a new version would meet parts of the old one
    "X-Content-Type-Options": "nosniff",
}


def create_studio(engine: Engine, serving: Serving, token: str | None = None) -> FastAPI:
    """The service of :func:`pipelines.serving.app.create_app` with the studio's page at ``/``.

    Args:
        token: what callers must send as ``Authorization: Bearer``; the page asks people for it.
    """
    app = create_app(engine, serving, token=token, public=PUBLIC)
    app.mount("/page", _Files(directory=PAGE), name="page")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", headers=HEADERS)

    return app


class _Files(StaticFiles):
    """The page's parts, with its headers."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response
