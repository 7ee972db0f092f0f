"""Signatures of ensembles: Ed25519 over the model's name and the sha256 of its ``ensemble.json``.

Who promotes has the private key; who draws needs public keys alone. A signature says that the
holder of a key promoted this ensemble once, not that it is the champion now.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNING_KEY = "EDIFFI_SIGNING_KEY"
"""Environment variable: a private key, as PEM or the path of a PEM file. Promotions are signed."""

TRUSTED_KEYS = "EDIFFI_TRUSTED_KEYS"
"""Environment variable: public keys, as PEM or the path of a PEM file. Only ensembles that one of
them has signed are loaded and promoted."""

CONTEXT = "ediffi ensemble 1"
"""First line of what is signed, so that no signature made for another purpose counts."""

MAKE_ONE = "make one by `openssl genpkey -algorithm ed25519`"

_BEGIN = "-----BEGIN"
_PUBLIC = re.compile(r"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Seal:
    """What an ensemble's ``ensemble.json`` must be, and who has signed that."""

    sha256: str
    signatures: Mapping[str, str] = field(default_factory=dict)
    """Public key → signature, both in base64."""

    def signers(self, model: str) -> set[str]:
        """Public keys whose signature is right. Anyone can make a key: ask which are trusted."""
        return {key for key, made in self.signatures.items() if self._is_right(model, key, made)}

    def signed(self, model: str, key: Ed25519PrivateKey) -> Seal:
        """The seal with a signature by this key; itself if it has that."""
        public = _text(key.public_key().public_bytes_raw())
        if public in self.signers(model):
            return self
        made = _text(key.sign(self._message(model)))
        return replace(self, signatures={**self.signatures, public: made})

    def _message(self, model: str) -> bytes:
        return f"{CONTEXT}\n{model}\n{self.sha256}\n".encode()

    def _is_right(self, model: str, key: str, signature: str) -> bool:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            public = Ed25519PublicKey.from_public_bytes(base64.b64decode(key, validate=True))
            public.verify(base64.b64decode(signature, validate=True), self._message(model))
        except (ValueError, InvalidSignature):
            return False
        return True


def signing_key() -> Ed25519PrivateKey | None:
    """The private key to sign promotions with; None if :data:`SIGNING_KEY` is not set.

    Raises:
        ValueError: The variable is set to something else.
    """
    if (pem := _pem(SIGNING_KEY)) is None:
        return None
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key: object = None
    with contextlib.suppress(ValueError, TypeError, UnsupportedAlgorithm):  # they could quote it
        key = load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(
            f"{SIGNING_KEY} is no unencrypted private key of Ed25519 in PEM; {MAKE_ONE}"
        )
    return key


def trusted_keys() -> set[str] | None:
    """The trusted public keys, in base64; None if :data:`TRUSTED_KEYS` is not set.

    Raises:
        ValueError: The variable is set to something else, or to no key.
    """
    if (pem := _pem(TRUSTED_KEYS)) is None:
        return None
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    found = set()
    for block in _PUBLIC.findall(pem):
        key: object = None
        with contextlib.suppress(ValueError, UnsupportedAlgorithm):
            key = load_pem_public_key(block.encode())
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError(f"{TRUSTED_KEYS} has a key that is no public key of Ed25519 in PEM")
        found.add(_text(key.public_bytes_raw()))
    if not found:
        raise ValueError(
            f"{TRUSTED_KEYS} is set but has no public key in PEM, so nothing could be loaded; "
            "write `openssl pkey -in KEY -pubout` to it, or unset it"
        )
    return found


def for_replicas() -> dict[str, str]:
    """:data:`TRUSTED_KEYS` for processes on other machines, with the keys themselves.

    Raises:
        ValueError: As of :func:`trusted_keys`.
    """
    if trusted_keys() is None:
        return {}
    return {TRUSTED_KEYS: "\n".join(_PUBLIC.findall(_pem(TRUSTED_KEYS) or ""))}


def _pem(name: str) -> str | None:
    given = os.environ.get(name)
    if given is None or _BEGIN in given:
        return given
    if not given:
        return ""
    try:
        return Path(given).read_text()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise ValueError(f"{name} is neither PEM nor a file that can be read ({why})") from None


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
