"""An S3 server with injected faults: moto behind a proxy that answers 500, 503 or not at all."""

from __future__ import annotations

import contextlib
import http.client
import logging
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

KEY, SECRET = "AKIAEDIFFITESTKEY000", "a-secret-that-must-show-up-nowhere"
REFUSALS = {"403": "AccessDenied", "404": "NoSuchUpload", "500": "InternalError", "503": "SlowDown"}
KINDS = ("500", "503", "reset", "lost", "cut")


@dataclass
class Faults:
    """Which faults to inject, and counts of those injected. May change while the server runs."""

    rate: float = 0.0
    """Share of the requests that fail."""

    kinds: tuple[str, ...] = KINDS
    """``500``, ``503`` and, if listed, ``403`` and ``404``: refuse with that status. ``reset``:
    reset the connection before handling the request. ``lost``: handle the request, then reset the
    connection. ``cut``: send half of the answer."""

    methods: tuple[str, ...] = ("GET", "PUT", "HEAD", "POST", "DELETE")
    next: list[str | None] = field(default_factory=list)
    """Faults of the next requests with these methods, regardless of the rate; None: no fault."""

    lag_s: float = 0.0
    """How long a new object is missing from listings."""

    delay_s: float = 0.0
    """Extra duration of every write request."""

    bare_tags: bool = False
    """Compare If-Match with ETags without their quotes, as Ceph up to 16 does."""

    seed: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random, self._lock = random.Random(self.seed), threading.Lock()
        self._born: dict[str, float] = {}

    def draw(self, method: str) -> str | None:
        """The fault to inject into a request, or None."""
        with self._lock:
            self.requests[method] += 1
            if method not in self.methods:
                return None
            kind = None
            if self.next:
                kind = self.next.pop(0)
            elif self._random.random() < self.rate:
                kind = self._random.choice(self.kinds)
            if kind:
                self.done[kind] += 1
            return kind

    def born(self, key: str) -> None:
        with self._lock:
            self._born.setdefault(key, time.monotonic())

    def late(self, listing: bytes) -> bytes:
        """A listing without objects newer than the lag."""

        def keep(found: re.Match[bytes]) -> bytes:
            age = time.monotonic() - self._born.get(found[1].decode(), 0.0)
            return b"" if age < self.lag_s else found[0]

        return re.sub(rb"<Contents>\s*<Key>([^<]*)</Key>.*?</Contents>", keep, listing, flags=re.S)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def handle_any(self) -> None:
        faults = self.server.faults
        kind = faults.draw(self.command)
        if kind == "reset":
            return self.hang_up()
        body = self.body()
        if kind in REFUSALS:
            code = REFUSALS[kind]
            text = f"<Error><Code>{code}</Code><Message>made to fail</Message></Error>"
            return self.answer(int(kind), [("Content-Type", "application/xml")], text.encode())
        if self.command in ("PUT", "POST"):
            time.sleep(faults.delay_s)
        status, headers, data = self.forward(body)
        bucket_and_key = urlsplit(self.path)
        if self.command == "PUT" and status == 200:
            faults.born(bucket_and_key.path.lstrip("/").partition("/")[2])
        if self.command == "GET" and "list-type=2" in bucket_and_key.query and faults.lag_s:
            data = faults.late(data)
        if kind == "lost":
            return self.hang_up()
        self.answer(status, headers, data, cut=kind == "cut")
        return None

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        dropped = {"expect", "connection", "transfer-encoding", "content-length"}
        headers = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
        if self.server.faults.bare_tags and "If-Match" in headers:
            headers["If-Match"] = f'"{headers["If-Match"]}"'
        upstream = http.client.HTTPConnection(*self.server.upstream, timeout=60)
        try:
            upstream.request(self.command, self.path, body, headers)
            found = upstream.getresponse()
            return found.status, found.getheaders(), found.read()
        finally:
            upstream.close()

    def answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, *, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        length = str(len(data))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.hang_up()

    def hang_up(self) -> None:
        """Reset the connection."""
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the client has disconnected
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream: tuple[str, int], faults: Faults) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.faults = upstream, faults

    def shutdown_request(self, request: Any) -> None:
        with contextlib.suppress(OSError):
            super().shutdown_request(request)


@dataclass(frozen=True)
class S3:
    """A running server with one bucket, ``bucket``."""

    endpoint: str
    faults: Faults
    upstream: tuple[str, int]

    def empty(self) -> None:
        """Leave one bucket with nothing in it. moto's state outlives its server."""
        for method, path in (("POST", "/moto-api/reset"), ("PUT", "/bucket")):
            asked = http.client.HTTPConnection(*self.upstream)
            asked.request(method, path, headers={"Authorization": f"AWS {KEY}:none"})
            answer = asked.getresponse()
            assert answer.status == 200, answer.read()
            asked.close()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


AWS_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_PROFILE",
)


def forget_connections() -> None:
    """Clear fsspec's cached file systems, which keep their credentials and addresses."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()


@contextlib.contextmanager
def running() -> Iterator[S3]:
    """Run moto and the proxy in front of it, with one bucket."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    upstream = moto.get_host_and_port()
    proxy = _Proxy(upstream, Faults())
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        found = S3(f"http://127.0.0.1:{proxy.server_port}", proxy.faults, upstream)
        found.empty()
        yield found
    finally:
        proxy.shutdown()
        proxy.server_close()
        moto.stop()
