"""Refusals as HTTP answers: one JSON shape, that of OpenAI's API, for whatever goes wrong."""

from __future__ import annotations

import math
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from pipelines.serving.errors import Refused
from pipelines.serving.logs import log_error

RETRY_S = 5
"""``Retry-After`` of an answer 429 or 503 that has none of its own."""


class Invalid(Refused):
    """The request is malformed, or asks for what is not offered."""

    def __init__(
        self, message: str, param: str | None = None, *, retry_after_s: float | None = None
    ) -> None:
        """
        Args:
            param: dotted name of the field that is wrong.
        """
        super().__init__(message, retry_after_s=retry_after_s)
        self.param = param


class BodyTimeout(Refused):
    """The request did not arrive in time."""

    status, code = 408, "request_timeout"


class WrongMediaType(Refused):
    """The body is not JSON by its header."""

    status, code = 415, "unsupported_media_type"


class Unauthorized(Refused):
    """The token is missing or wrong."""

    status, code = 401, "invalid_api_key"


class Forbidden(Refused):
    """The service may not be addressed by this name, or not from this page."""

    status, code = 403, "forbidden"


class FilterFailed(Refused):
    """A filter raised an error, so nothing is shown."""

    status, code = 503, "filter_failed"


class Unexpected(Refused):
    """A defect; the log has the details."""

    status, code = 500, "internal_error"


class ClientGone(Exception):
    """The caller has closed the connection."""


KINDS = {401: "authentication_error", 429: "rate_limit_error"}
"""Status → ``type`` of an error; ``invalid_request_error`` and ``server_error`` for others."""


def shape(status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    other = "invalid_request_error" if status < 500 else "server_error"
    kind = KINDS.get(status, other)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def shape_of(refused: Refused) -> dict[str, Any]:
    """The body of a refusal, also within a stream."""
    param = getattr(refused, "param", None)
    return shape(refused.status, refused.code, refused.message, param)


def answer(refused: Refused) -> JSONResponse:
    """The whole answer of a refusal."""
    status, headers = refused.status, {}
    if status in (429, 503) or refused.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(refused.retry_after_s or RETRY_S)))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status in (408, 413):  # not all of the body may have been read
        headers["Connection"] = "close"
    return JSONResponse(shape_of(refused), status, headers)


async def http_exception(request: Request, error: Exception) -> JSONResponse:
    """Starlette's own errors, such as 404 and 405, in the shape of all others."""
    assert isinstance(error, HTTPException)
    messages = {
        404: "there is no such path; ask for /v1/images/generations or /v1/ediffi/sample",
        405: f"this path does not take {request.method}",
    }
    message = messages.get(error.status_code, error.detail)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    return JSONResponse(shape(error.status_code, code, message), error.status_code, error.headers)


def as_refused(error: Exception, request_id: str, *, with_message: bool) -> Refused:
    """What a caller is told of an error; one that is no refusal is logged, and not told.

    Args:
        with_message: whether the log has the error's message, which may quote the request.
    """
    if isinstance(error, Refused):
        return error
    log_error(f"request {request_id} failed", error, with_message=with_message)
    return Unexpected(f"the service failed; its log has the details under {request_id}")
