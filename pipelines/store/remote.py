"""Object stores: how they are reached, what is asked again, and what their errors mean.

S3 is reached as the environment says (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_DEFAULT_REGION``, ``AWS_PROFILE``, or a role of the machine's), for
s3fs, Arrow and the processes of Ray alike. A spec's ``s3:`` comes before it; see :func:`use`.
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

ATTEMPTS = 6
FIRST_WAIT_S = 0.2  # doubles with every attempt
REQUEST_ATTEMPTS = 3  # of botocore's own, within each of ours

T = TypeVar("T")

_AGAIN = {
    "SlowDown",
    "InternalError",
    "RequestTimeout",
    "IncompleteBody",
    "BadDigest",
    "NoSuchUpload",  # completed by an attempt whose answer was lost, or ended by a rule
}
_NETWORK = {
    "ClientError",  # aiohttp's; botocore's has a response, and is judged by that
    "ConnectionError",
    "HTTPClientError",
    "HTTPException",
    "TimeoutError",
    "ResponseParserError",
    "FlexibleChecksumError",
}
_FINAL = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    NotADirectoryError,
    IsADirectoryError,
)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG}


class StorageError(OSError):
    """An object store refuses, or is not to be reached: in one line that says what to do."""


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Listings are never remembered.

    Raises:
        ValueError: It needs a package that is not installed.
    """
    import fsspec

    options: dict[str, Any] = {}
    if "::" not in url:
        options["use_listings_cache"] = False
    if url.startswith(("s3://", "s3a://")):
        options["config_kwargs"] = {
            "retries": {"mode": "standard", "max_attempts": REQUEST_ATTEMPTS},
            "connect_timeout": 10,
        }
    if url.startswith(("http://", "https://")):
        from aiohttp import ClientTimeout

        options["client_kwargs"] = {"timeout": ClientTimeout(total=None, connect=10, sock_read=30)}
    try:
        fs, path = explained(lambda: fsspec.core.url_to_fs(url, **options), url)
    except ImportError as error:
        raise ValueError(
            f"{url} cannot be reached: {' '.join(str(error).split())}, into the environment that "
            "runs this and on the cluster's machines; or bring the files to a disk or to S3"
        ) from error
    return fs, path


def use(variables: Mapping[str, str]) -> None:
    """Sets the environment to what a spec's ``s3:`` says, for this process and those it starts.

    What a spec says comes before what the environment said. Credentials go together: with a
    spec's, no other key, token or profile of the environment is left.
    """
    if {"AWS_ACCESS_KEY_ID", "AWS_PROFILE"} & set(variables):
        for name in (
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "AWS_PROFILE",
            "AWS_DEFAULT_PROFILE",
        ):
            os.environ.pop(name, None)
    os.environ.update(variables)


def attempt(once: Callable[[], T], where: str = "", attempts: int = 0) -> T:
    """Tries again, ever later, what a busy or restarting server refuses.

    Args:
        where: what it is about, as the error shall name it.
        attempts: without them :data:`ATTEMPTS`, which bridge half a minute.

    Raises:
        FileNotFoundError: There is no such object.
        StorageError: It was refused, or refused again in the last attempt.
    """
    attempts = attempts or ATTEMPTS
    for trial in range(attempts):
        try:
            return explained(once, where)
        except StorageError:
            raise
        except Exception as error:
            if not is_transient(error):
                raise
            if trial == attempts - 1:
                raise StorageError(
                    _said(where, f"{attempts} attempts failed, the last with {_words(error)}")
                ) from error
            # Not all ranks at once: the server that was too busy for them would be so again.
            time.sleep(FIRST_WAIT_S * 2**trial * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def explained(once: Callable[[], T], where: str = "") -> T:
    """Calls it; of what an object store will never allow it makes a StorageError."""
    try:
        return once()
    except Exception as error:
        if (why := _refusal(error)) is None:
            raise
        raise StorageError(_said(where, why)) from error


def is_transient(error: BaseException | None) -> bool:
    """Whether it is of the network or the server; HTTP clients have families of their own."""
    if error and _response(error):
        status = status_of(error)
        return status >= 500 or status in (408, 429) or _code(error) in _AGAIN
    if isinstance(error, OSError):
        return not isinstance(error, _FINAL) and error.errno not in _FULL
    return error is not None and bool(_families(error) & _NETWORK)


def _refusal(error: BaseException) -> str | None:
    """In words, what trying again will not help against; None if it is anything else."""
    families, code = _families(error), _code(error)
    if code == "NoSuchBucket":
        return "there is no such bucket; make it, or correct its name"
    if families & {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}:
        return (
            "no credentials for S3; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
            "AWS_PROFILE, or `s3:` in the spec"
        )
    if isinstance(error, PermissionError) and _response(error):
        return (
            f"access denied ({_words(error)}); check the credentials (AWS_* or `s3:` in the spec), "
            "and that they may read, write and list there"
        )
    if is_transient(error) or isinstance(error, FileNotFoundError):
        return None
    return _words(error) if "BotoCoreError" in families or _response(error) else None


def _response(error: BaseException) -> dict[str, Any]:
    """What S3 answered; s3fs keeps it with the cause of its own errors."""
    for one in (error, error.__cause__):
        if isinstance(found := getattr(one, "response", None), dict):
            return found
    return {}


def status_of(error: BaseException) -> int:
    """The HTTP status that S3 refused with; 0 if it did not come to that."""
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)


def _code(error: BaseException) -> str:
    return str(_response(error).get("Error", {}).get("Code", ""))


def _families(error: BaseException) -> set[str]:
    return {base.__name__ for base in type(error).__mro__}


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _said(where: str, why: str) -> str:
    return f"{where}: {why}" if where else why
