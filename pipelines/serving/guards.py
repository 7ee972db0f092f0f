"""What every request passes: host, origin and token; and what every answer has: an id, headers."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serving.errors import TooLarge
from pipelines.serving.http_errors import (
    BodyTimeout,
    ClientGone,
    Forbidden,
    Unauthorized,
    answer,
    as_refused,
)
from pipelines.serving.logs import log
from pipelines.spec.serving import Serving

BODY_S = 60.0
"""Seconds in which a request's body must arrive."""

DROPPED_BYTES = 32_000_000
"""How much of a body beyond the limit is read and dropped. A connection that is closed with unread
bytes is reset, and its caller may never see the answer."""

PROBES = ("/healthz", "/readyz")
"""Paths that any host name and any caller may ask for: they tell nothing else."""

SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Headers of every answer that does not set them itself."""

AUTHORITY = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[^\s:@/\\?#\[\]]+)(:\d{1,5})?")
"""A host as in the header ``Host``, with or without a port."""

GONE = 499
"""Status in the log, as nginx's, of a request whose caller went away."""


@dataclass
class Record:
    """What the log says of a request."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    status: int = 0
    pictures: int = 0
    model: str = "-"
    """Name of the served model, never a text of the request."""

    path: str = "-"
    """Path of the route."""

    code: str | None = None
    """Code of the error, also of one amid a stream."""

    prompt: str | None = None
    """Only with ``log_prompts``."""

    is_gone: bool = False

    def line(self, seconds: float) -> str:
        """One line for the log."""
        status = GONE if self.is_gone else self.status
        parts = [
            f"id={self.id}",
            f"path={self.path}",
            f"status={status}",
            f"pictures={self.pictures}",
            f"seconds={seconds:.3f}",
            f"model={self.model}",
        ]
        parts += [f"error={self.code}"] if self.code else []
        parts += [f"prompt={self.prompt!r}"] if self.prompt is not None else []
        return " ".join(parts)


def record_of(request: Request) -> Record:
    """The record that :class:`Guard` keeps of a request."""
    found: Record = request.scope["state"]["record"]
    return found


class Guard:
    """ASGI middleware around the whole service."""

    def __init__(
        self, app: ASGIApp, *, serving: Serving, token: str | None, public: Sequence[str] = ()
    ) -> None:
        """
        Args:
            public: paths that need no token, besides :data:`PROBES`; one that ends with a slash
                stands for all below it, but for ``/``, which is itself alone.
        """
        self.app, self.serving, self.public = app, serving, public
        self.token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record, started = Record(), time.perf_counter()
        scope.setdefault("state", {})["record"] = record

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = record.id
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope)
            await self.app(scope, receive, sending)
        except (ClientGone, ClientDisconnect, asyncio.CancelledError) as error:
            record.is_gone = True
            if isinstance(error, asyncio.CancelledError):
                raise
        except Exception as error:
            refused = as_refused(error, record.id, with_message=self.serving.log_prompts)
            record.code = refused.code
            if record.status:  # an answer has begun; only a broken connection can tell
                raise RuntimeError(f"request {record.id} failed amid its answer") from None
            await answer(refused)(scope, receive, sending)
        finally:
            record.path = getattr(scope.get("route"), "path", "-")
            log.info(record.line(time.perf_counter() - started))

    def _check(self, scope: Scope) -> None:
        if scope["path"] in PROBES:
            return
        headers = Headers(scope=scope)
        host = check_host(headers.getlist("host"), self.serving)
        check_origin(headers.get("origin"), host, self.serving)
        if self.token is not None and not self._is_public(scope["path"]):
            check_token(headers.get("authorization"), self.token)

    def _is_public(self, path: str) -> bool:
        folders = tuple(p for p in self.public if p.endswith("/") and p != "/")
        return path in self.public or path.startswith(folders)


def check_host(given: Sequence[str], serving: Serving) -> str:
    """Refuse names by which the service may not be addressed, against DNS rebinding.

    Returns:
        The header ``Host``.

    Raises:
        Forbidden: There is not one host, or it is not allowed.
    """
    host = given[0] if len(given) == 1 else ""
    name = _name(host)
    allowed = {allowed.lower() for allowed in serving.allowed_hosts} | {serving.host.lower()}
    if name is None or not (is_loopback(name) or name in allowed or "*" in allowed):
        raise Forbidden(
            f"the service may not be addressed as {host[:100]!r}; add the name to `allowed_hosts`"
        )
    return host


def check_origin(origin: str | None, host: str, serving: Serving) -> None:
    """Refuse requests that a browser sends for another site's page.

    Raises:
        Forbidden: The page is neither of this service nor of ``allowed_hosts``.
    """
    if origin is None:
        return
    _, _, authority = origin.partition("://")
    allowed = {allowed.lower() for allowed in serving.allowed_hosts}
    if authority.lower() != host.lower() and (_name(authority) or "*") not in allowed - {"*"}:
        raise Forbidden(
            f"pages of {origin[:100]!r} may not use the service; add the host to `allowed_hosts`"
        )


def check_token(authorization: str | None, token: bytes) -> None:
    """Compare the token in constant time.

    Raises:
        Unauthorized: It is missing or wrong.
    """
    scheme, _, given = (authorization or "").partition(" ")
    is_right = hmac.compare_digest(given.strip().encode("latin-1"), token)
    if scheme.lower() != "bearer" or not is_right:
        raise Unauthorized("the token is missing or wrong; send `Authorization: Bearer TOKEN`")


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine alone."""
    name = host.strip("[]").rstrip(".").lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _name(authority: str) -> str | None:
    """The name of a host and port, in lower case; None if it is malformed."""
    match = AUTHORITY.fullmatch(authority)
    return match["name"].rstrip(".").lower() if match else None


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request.

    Args:
        limit: bytes to read at most.

    Raises:
        TooLarge: It is larger. Up to :data:`DROPPED_BYTES` of it are read and dropped, unless the
            caller waits for leave to send it.
        BodyTimeout: It did not arrive within :data:`BODY_S`.
    """
    too_large = TooLarge(f"the request has more than {limit:,} bytes; send smaller pictures")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or len(declared) > 18:
        raise too_large
    size, waits = int(declared), "expect" in request.headers
    if size > limit + (0 if waits else DROPPED_BYTES):
        raise too_large
    body, read = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                read += len(chunk)
                if max(size, read) <= limit:
                    body += chunk
                elif read > limit + DROPPED_BYTES:
                    break
    except TimeoutError:
        raise BodyTimeout(f"the request did not arrive within {BODY_S:g} s") from None
    if read > limit:
        raise too_large
    return bytes(body)
