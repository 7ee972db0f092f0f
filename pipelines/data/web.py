"""Download pictures that a data set names by http(s): one request each, with short timeouts.

Whoever writes a data set chooses its addresses, so only hosts of ``urls:`` are asked, at public IP
addresses or those of named networks. Both are checked again after each redirect, and the connection
goes to the very address that was checked. Behind a proxy (``HTTPS_PROXY``) it is the proxy that
resolves names, and decides what can be reached.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import ssl
import string
import threading
import time
from collections.abc import Iterator
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPSConnection,
    IncompleteRead,
    InvalidURL,
)
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urljoin, urlsplit, urlunsplit
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    Request,
    build_opener,
    getproxies,
    proxy_bypass,
)

from pipelines.data.rows import Reason, RowError
from pipelines.spec.hosts import Hosts
from pipelines.store import remote

READ_TIMEOUT_S = 8.0
"""How long to wait for a server that sends nothing."""

TOTAL_TIMEOUT_S = 20.0
"""How long one picture may take, all attempts and redirects together, whatever its servers send."""

MAX_REDIRECTS = 5
REDIRECTS = {301, 302, 303, 307, 308}

FAILURES_BEFORE_SKIP = 3
"""After this many failed pictures in a row, a server is skipped for :data:`SKIP_S`."""

SKIP_S = 60.0

CHUNK_BYTES = 2**18
TRANSIENT_STATUSES = {408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524}
"""HTTP statuses worth a retry. Any other, such as 404 or 501, is final."""

NO_SUCH_HOST = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}

_failures: dict[str, tuple[int, float]] = {}
"""Server → how many pictures in a row failed, and when the last of them was requested."""


def fetch(address: str, most: int, hosts: Hosts) -> bytes:
    """Download a file.

    Args:
        address: An http or https URL.
        most: Size limit in bytes; of a larger file, ``most`` + 1 bytes are returned.
        hosts: Those that may be asked.

    Raises:
        RowError: ``URL_HOST`` if a host may not be asked; ``IMAGE_FETCH`` if the server refuses or
            the address is invalid; ``IMAGE_AWAY`` if the server is busy, silent or unreachable, and
            a later run may succeed.
    """
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise RowError(Reason.IMAGE_FETCH, f"invalid address: {error}") from error
    # Without credentials or query, which may be secret.
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    count, when = _failures.get(parts.netloc, (0, 0.0))
    if count >= FAILURES_BEFORE_SKIP and time.monotonic() - when < SKIP_S:
        raise RowError(
            Reason.IMAGE_AWAY, f"{shown}: skipped; its server failed {count} times in a row"
        )
    end = time.monotonic() + TOTAL_TIMEOUT_S
    for trial in range(remote.ATTEMPTS):
        try:
            data = _get(address, most, end, hosts)
        except (OSError, HTTPException, ValueError, OverflowError) as error:
            if not is_transient(error):
                raise RowError(Reason.IMAGE_FETCH, f"{shown}: {_describe(error)}") from error
            wait = remote.FIRST_WAIT_S * 2**trial * random.uniform(0.5, 1.5)
            if trial == remote.ATTEMPTS - 1 or time.monotonic() + wait >= end:
                _failures[parts.netloc] = (count + 1, time.monotonic())
                raise RowError(Reason.IMAGE_AWAY, f"{shown}: {_describe(error)}") from error
            time.sleep(wait)
        else:
            _failures.pop(parts.netloc, None)
            return data
    raise AssertionError("unreachable")


def is_transient(error: BaseException) -> bool:
    """Whether an error comes from the network or a busy server, so that a retry may succeed."""
    if isinstance(error, HTTPError):
        return error.code in TRANSIENT_STATUSES
    if isinstance(error, URLError):
        return isinstance(error.reason, OSError) and is_transient(error.reason)
    if isinstance(error, socket.gaierror):
        return error.errno not in NO_SUCH_HOST
    if isinstance(error, ssl.SSLCertVerificationError | InvalidURL):
        return False
    return isinstance(error, OSError | HTTPException)


def _get(address: str, most: int, end: float, hosts: Hosts) -> bytes:
    """Request a file, following redirects.

    Raises IncompleteRead for a truncated answer; ``http.client`` alone does not.
    """
    with _deadline(end) as held:
        for _ in range(MAX_REDIRECTS + 1):
            address = _ascii(address)
            host = urlsplit(address).hostname or ""
            if not hosts.has(host):
                raise RowError(Reason.URL_HOST, f"{host}; to fetch from it, name it there")
            left = max(0.1, min(READ_TIMEOUT_S, end - time.monotonic()))
            request = Request(address, headers={"User-Agent": "ediffi"})
            try:
                answer = _opener(address, hosts, held).open(request, timeout=left)
            except HTTPError as error:
                error.close()
                if error.code not in REDIRECTS or not (to := error.headers.get("Location")):
                    raise
                # Headers are read as Latin-1, whatever their bytes are.
                address = urljoin(address, quote(to, string.punctuation, encoding="latin-1"))
                continue
            with answer:
                chunks, size = [], 0
                while size <= most and (chunk := answer.read(min(CHUNK_BYTES, most + 1 - size))):
                    chunks.append(chunk)
                    size += len(chunk)
                if time.monotonic() > end:
                    raise TimeoutError(f"download exceeded {TOTAL_TIMEOUT_S:.0f} s")
                if size <= most and answer.length:
                    raise IncompleteRead(b"", answer.length)
            return b"".join(chunks)
    raise InvalidURL(f"more than {MAX_REDIRECTS} redirects")


@contextlib.contextmanager
def _deadline(end: float) -> Iterator[list[socket.socket]]:
    """A list of sockets that are shut down at a time of the monotonic clock.

    The timeout of a socket bounds each wait, but not their number.
    """
    held: list[socket.socket] = []

    def shut_down() -> None:
        for one in held:
            with contextlib.suppress(OSError):  # it is closed already
                one.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, end - time.monotonic()), shut_down)
    timer.daemon = True
    timer.start()
    try:
        yield held
    finally:
        timer.cancel()
        for one in held:
            one.close()


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _opener(address: str, hosts: Hosts, held: list[socket.socket]) -> Any:
    """An opener that connects to checked addresses only, and adds its sockets to ``held``."""
    parts = urlsplit(address)
    is_proxied = parts.scheme in getproxies() and not proxy_bypass(parts.hostname or "")

    def reach(place: tuple[str, int], timeout: float, _: Any) -> socket.socket:
        connection = _connect(*place, timeout, None if is_proxied else hosts)
        held.append(connection.dup())  # TLS takes the other one over
        return connection

    def checked(kind: type[HTTPConnection]) -> Any:
        def make(*given: Any, **more: Any) -> HTTPConnection:
            made = kind(*given, **more)
            made._create_connection = reach  # type: ignore[attr-defined]
            return made

        return make

    class Plain(HTTPHandler):
        def http_open(self, request: Request) -> Any:
            return self.do_open(checked(HTTPConnection), request)

    class Secure(HTTPSHandler):
        def https_open(self, request: Request) -> Any:
            context = ssl.create_default_context()
            return self.do_open(checked(HTTPSConnection), request, context=context)

    return build_opener(_NoRedirects, Plain, Secure)


def _connect(host: str, port: int, timeout: float, hosts: Hosts | None) -> socket.socket:
    """Connect to the first IP address of a host that answers and that is allowed.

    Args:
        hosts: None if every address is, as that of a proxy.
    """
    found = [where[0] for *_, where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    allowed = [ip for ip in found if hosts is None or hosts.may_connect(str(ip))]
    if not allowed:
        raise RowError(
            Reason.URL_HOST,
            f"{host} is at {found[0]}, which is not public; to fetch from it, name its network "
            "there too",
        )
    for ip in allowed[:-1]:
        with contextlib.suppress(OSError):  # the next one may answer
            return socket.create_connection((str(ip), port), timeout)
    return socket.create_connection((str(allowed[-1]), port), timeout)


def _ascii(address: str) -> str:
    """The address percent-encoded for HTTP, without user and password; ValueError if invalid."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"redirects to {parts.scheme}:")
    host = parts.hostname or ""
    if not host.isascii():
        host = host.encode("idna").decode()
    if ":" not in host and not re.fullmatch(r"[a-z0-9._-]+", host):
        raise ValueError("no valid host")
    host = f"[{host}]" if ":" in host else host
    place = host if parts.port is None else f"{host}:{parts.port}"  # ValueError if it is invalid
    path, query = (quote(part, safe="%/:?@!$&'()*+,;=~") for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, place, path, query, ""))


def _describe(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    if isinstance(error, HTTPError):
        return f"HTTP {error.code}"
    return _describe(reason) if isinstance(reason, OSError) else f"{type(error).__name__}: {error}"
