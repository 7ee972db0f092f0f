"""Where the service listens, and who may call it; checked before anything is started."""

from __future__ import annotations

import os
import socket

from pipelines.serving.guards import is_loopback
from pipelines.spec.serving import Serving


def token_of(serving: Serving) -> str | None:
    """The token that callers must give; None for a service of this machine alone without one.

    Raises:
        ValueError: The service would listen beyond this machine without a token.
    """
    token = os.environ.get(serving.token_variable, "").strip() or None
    if token is None and not is_loopback(serving.host):
        raise ValueError(
            f"{serving.host} is reached from other machines, and there is no token; set "
            f"{serving.token_variable}, for instance to `openssl rand -hex 16`, or listen at "
            "127.0.0.1"
        )
    return token


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        port: 0 for any that is free.

    Raises:
        ValueError: This machine cannot listen there.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ValueError(
            f"port {port} of {host} cannot be listened at ({error.strerror or error}); give "
            "another with --port, or --port 0 for any that is free"
        ) from error


def free_port(host: str, port: int) -> int:
    """The port to listen at, which is free now; see :func:`listening`."""
    with listening(host, port) as probe:
        return int(probe.getsockname()[1])


def address_of(host: str, port: int) -> str:
    """The URL of a service, as a caller on this machine writes it."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
