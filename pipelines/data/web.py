"""Pictures that a data set names by http(s): one request each, and an answer within seconds."""

from __future__ import annotations

import random
import socket
import ssl
import time
from http.client import HTTPException, IncompleteRead, InvalidURL
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

from pipelines.data.rows import BadRow, Reason
from pipelines.store import remote

SILENCE_S = 8.0
"""As long is a server waited for that says nothing."""

WITHIN_S = 20.0
"""As long may one picture take, all attempts together."""

AWAY_AFTER = 3
"""So many pictures in a row that a server did not give, and it is left alone for a while."""

AWAY_S = 60.0

CHUNK_BYTES = 2**18
BUSY = {408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524}
"""HTTP states that may pass. Any other, such as 404 or 501, is an answer."""

NO_SUCH_HOST = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}

_refusals: dict[str, tuple[int, float]] = {}
"""Server → how many pictures in a row it did not give, and when the last of them was asked for."""


def fetch(address: str, most: int) -> bytes:
    """What lies at an address; of a larger file no more than the first ``most`` + 1 bytes.

    Raises:
        BadRow: ``IMAGE_FETCH`` if the server says no, ``IMAGE_AWAY`` if it was busy, silent or not
            to be reached and may be there another time.
    """
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise BadRow(Reason.IMAGE_FETCH, f"no address: {error}") from error
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # nothing secret
    count, when = _refusals.get(parts.netloc, (0, 0.0))
    if count >= AWAY_AFTER and time.monotonic() - when < AWAY_S:
        raise BadRow(Reason.IMAGE_AWAY, f"{shown}: not asked, as its server gave none of {count}")
    end = time.monotonic() + WITHIN_S
    for trial in range(remote.ATTEMPTS):
        try:
            data = _get(address, most, end)
        except (OSError, HTTPException, ValueError, OverflowError) as error:
            if not may_pass(error):
                raise BadRow(Reason.IMAGE_FETCH, f"{shown}: {_words(error)}") from error
            wait = remote.FIRST_WAIT_S * 2**trial * random.uniform(0.5, 1.5)
            if trial == remote.ATTEMPTS - 1 or time.monotonic() + wait >= end:
                _refusals[parts.netloc] = (count + 1, time.monotonic())
                raise BadRow(Reason.IMAGE_AWAY, f"{shown}: {_words(error)}") from error
            time.sleep(wait)
        else:
            _refusals.pop(parts.netloc, None)
            return data
    raise AssertionError("unreachable")


def may_pass(error: BaseException) -> bool:
    """Whether it is of the network or of a server's moment, and not the answer itself."""
    if isinstance(error, HTTPError):
        return error.code in BUSY
    if isinstance(error, URLError):
        return isinstance(error.reason, OSError) and may_pass(error.reason)
    if isinstance(error, socket.gaierror):
        return error.errno not in NO_SUCH_HOST
    if isinstance(error, ssl.SSLCertVerificationError | InvalidURL):
        return False
    return isinstance(error, OSError | HTTPException)


def _get(address: str, most: int, end: float) -> bytes:
    """One request; an answer cut short is raised, which ``http.client`` by itself does not."""
    request = Request(_ascii(address), headers={"User-Agent": "ediffi"})
    left = max(0.1, min(SILENCE_S, end - time.monotonic()))
    with urlopen(request, timeout=left) as answer:
        chunks, size = [], 0
        while size <= most and (chunk := answer.read(min(CHUNK_BYTES, most + 1 - size))):
            chunks.append(chunk)
            size += len(chunk)
            if time.monotonic() > end:
                raise TimeoutError(f"not all of it within {WITHIN_S:.0f} s")
        if size <= most and answer.length:
            raise IncompleteRead(b"", answer.length)
    return b"".join(chunks)


def _ascii(address: str) -> str:
    """The address as HTTP takes it; ValueError if it is none."""
    parts = urlsplit(address)
    _ = parts.port  # ValueError if it is none
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    path, query = (quote(part, safe="%/:?@!$&'()*+,;=~") for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, host, path, query, ""))


def _words(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    if isinstance(error, HTTPError):
        return f"HTTP {error.code}"
    return _words(reason) if isinstance(reason, OSError) else f"{type(error).__name__}: {error}"
