"""Secrets that are recognised wherever they turn up, in every variable that may hold one."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

SECRET = "hunter2-planted-secret"
KEY = Ed25519PrivateKey.from_private_bytes(b"hunter2-planted-signing-key-0123")

VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "EDIFFI_MARK_KEY",
    "EDIFFI_SMTP_PASSWORD",
    "EDIFFI_TOKEN",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_USERNAME",
)


def pem() -> str:
    """The private key, as EDIFFI_SIGNING_KEY may have it."""
    return KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def environment() -> dict[str, str]:
    """Each with a secret of its own, so that a trace tells which it is."""
    found = {name: f"{SECRET}-{name}" for name in VARIABLES}
    found["AWS_ENDPOINT_URL"] = f"http://me:{SECRET}-AWS_ENDPOINT_URL@127.0.0.1:9"
    return {**found, "EDIFFI_SIGNING_KEY": pem()}


FORMS = [
    SECRET.encode(),
    quote(SECRET, safe="").encode(),
    SECRET.encode().hex().encode(),
    *(base64.b64encode(b"x" * n + SECRET.encode())[4:-4] for n in (1, 2, 3)),
    pem().splitlines()[1].encode()[-40:],
    KEY.private_bytes_raw(),
]
"""As text, in hex, at each place in base64, and the private key."""


def traces(places: Iterable[Path], *texts: str) -> list[str]:
    """Files below the places whose name or content has a secret, and texts that have one."""
    found = []
    for place in places:
        for path in (place, *place.rglob("*")):
            data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            if _has_secret(os.fsencode(path.name) + b"\n" + data):
                found.append(str(path))
    return found + [text for text in texts if _has_secret(text.encode())]


def _has_secret(data: bytes) -> bool:
    return any(form in data for form in FORMS)
