"""Download pictures that a data set names by http(s): one request each, with short timeouts."""

from __future__ import annotations

import random
import socket
import ssl
import time
from http.client import HTTPException, IncompleteRead, InvalidURL
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

from pipelines.data.rows import Reason, RowError
from pipelines.store import remote

READ_TIMEOUT_S = 8.0
"""How long to wait for a server that sends nothing."""

TOTAL_TIMEOUT_S = 20.0
"""How long one picture may take, all attempts together."""

FAILURES_BEFORE_SKIP = 3
"""After this many failed pictures in a row, a server is skipped for :data:`SKIP_S`."""

SKIP_S = 60.0

CHUNK_BYTES = 2**18
TRANSIENT_STATUSES = {408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524}
"""HTTP statuses worth a retry. Any other, such as 404 or 501, is final."""

NO_SUCH_HOST = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}

_failures: dict[str, tuple[int, float]] = {}
"""Server → how many pictures in a row failed, and when the last of them was requested."""


def fetch(address: str, most: int) -> bytes:
    """Download a file.

    Args:
        address: An http or https URL.
        most: Size limit in bytes; of a larger file, ``most`` + 1 bytes are returned.

    Raises:
        RowError: ``IMAGE_FETCH`` if the server refuses or the address is invalid; ``IMAGE_AWAY``
            if the server is busy, silent or unreachable, and a later run may succeed.
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
            data = _get(address, most, end)
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


def _get(address: str, most: int, end: float) -> bytes:
    """One request. Raises IncompleteRead for a truncated answer; ``http.client`` alone does not."""
    request = Request(_ascii(address), headers={"User-Agent": "ediffi"})
    left = max(0.1, min(READ_TIMEOUT_S, end - time.monotonic()))
    with urlopen(request, timeout=left) as answer:
        chunks, size = [], 0
        while size <= most and (chunk := answer.read(min(CHUNK_BYTES, most + 1 - size))):
            chunks.append(chunk)
            size += len(chunk)
            if time.monotonic() > end:
                raise TimeoutError(f"download exceeded {TOTAL_TIMEOUT_S:.0f} s")
        if size <= most and answer.length:
            raise IncompleteRead(b"", answer.length)
    return b"".join(chunks)


def _ascii(address: str) -> str:
    """The address percent-encoded for HTTP; ValueError if it is invalid."""
    parts = urlsplit(address)
    _ = parts.port  # raises ValueError if it is invalid
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    path, query = (quote(part, safe="%/:?@!$&'()*+,;=~") for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, host, path, query, ""))


def _describe(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    if isinstance(error, HTTPError):
        return f"HTTP {error.code}"
    return _describe(reason) if isinstance(reason, OSError) else f"{type(error).__name__}: {error}"
