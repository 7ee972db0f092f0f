"""Access to object stores: connection settings, retries, and clear errors.

s3fs, Arrow and all Ray processes take the S3 settings from the environment (``AWS_ENDPOINT_URL``,
``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_DEFAULT_REGION``, ``AWS_PROFILE``, or the
machine's role). A spec's ``s3:`` overrides it; see :func:`export_settings`.
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

ATTEMPTS = 6
FIRST_WAIT_S = 0.2  # doubles with each attempt
REQUEST_ATTEMPTS = 3  # botocore's own, within each of our attempts

T = TypeVar("T")

_RETRY_CODES = {
    "SlowDown",
    "InternalError",
    "RequestTimeout",
    "IncompleteBody",
    "BadDigest",
    "NoSuchUpload",  # completed by an attempt whose answer was lost, or aborted by a lifecycle rule
}
_NETWORK_ERRORS = {
    "ClientError",  # aiohttp's; botocore's has a response, which decides
    "ConnectionError",
    "HTTPClientError",
    "HTTPException",
    "TimeoutError",
    "ResponseParserError",
    "FlexibleChecksumError",
}
_PERMANENT_ERRORS = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    NotADirectoryError,
    IsADirectoryError,
)
_PERMANENT_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG}


_CONTENT_ERRNOS = {None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
_REMEDIES = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there, or raise the quota",
    errno.EMFILE: "raise that machine's limit of open files (`ulimit -n`)",
    errno.ENFILE: "raise that machine's limit of open files (`sysctl fs.file-max`)",
    errno.EACCES: "let the user of the workers read and write there",
    errno.EPERM: "let the user of the workers read and write there",
    errno.EROFS: "let the user of the workers write there",
    errno.EIO: "check that disk; remove what it cannot read",
}


class StorageError(OSError):
    """An object store refuses a request or is unreachable. The message is one line with the
    remedy."""

    passes: bool = False
    """Whether the store may work later by itself. Kept when the error goes to another process."""

    @classmethod
    def of(cls, error: OSError) -> StorageError:
        """An error of any library as one that can be sent to another process."""
        if isinstance(error, cls):
            return error
        made = cls(_one_line(error))
        made.passes = may_pass(error)
        return made


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Listings are not cached.

    Raises:
        ValueError: The URL's scheme needs a package that is not installed.
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

        timeout = ClientTimeout(total=None, connect=10, sock_read=30)
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}  # ~/.netrc, proxies
    try:
        fs, path = explain_errors(lambda: fsspec.core.url_to_fs(url, **options), url)
    except ImportError as error:
        raise ValueError(
            f"{url} cannot be opened: {' '.join(str(error).split())}, here and on all machines of "
            "the cluster; or copy the files to a disk or to S3"
        ) from error
    return fs, path


def export_settings(variables: Mapping[str, str]) -> None:
    """Export a spec's ``s3:`` settings to the environment of this process and its children.

    They override the environment's. If they include credentials, all other keys, tokens and
    profiles are removed from the environment, so that credentials never mix.

    Args:
        variables: Environment variables, from the spec's ``s3:``.
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
    """Call a function, retrying with exponential backoff while a server is busy or unreachable.

    Args:
        once: The request.
        where: Path or URL, for the error message.
        attempts: 0: :data:`ATTEMPTS`, which last about half a minute.

    Raises:
        FileNotFoundError: There is no such object.
        StorageError: The server refused the request, or all attempts failed.
    """
    attempts = attempts or ATTEMPTS
    for trial in range(attempts):
        try:
            return explain_errors(once, where)
        except StorageError:
            raise
        except Exception as error:
            if not is_transient(error):
                raise
            if trial == attempts - 1:
                why = f"{attempts} attempts failed, the last with {_one_line(error)}"
                away = StorageError(_prefixed(where, why))
                away.passes = True
                raise away from error
            # Jitter, so that many ranks do not overload the server again at the same moment.
            time.sleep(FIRST_WAIT_S * 2**trial * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def explain_errors(once: Callable[[], T], where: str = "") -> T:
    """Call a function; turn errors that a retry cannot fix into a StorageError."""
    try:
        return once()
    except Exception as error:
        if (why := _refusal(error)) is None:
            raise
        raise StorageError(_prefixed(where, why)) from error


def is_transient(error: BaseException | None) -> bool:
    """Whether an error comes from the network or a busy server, so that a retry may succeed."""
    if error and _response(error):
        status = status_of(error)
        return status >= 500 or status in (408, 429) or _code(error) in _RETRY_CODES
    if isinstance(error, OSError):
        return not isinstance(error, _PERMANENT_ERRORS) and error.errno not in _PERMANENT_ERRNOS
    return error is not None and bool(_class_names(error) & _NETWORK_ERRORS)


def may_pass(error: OSError) -> bool:
    """Whether a store that failed may work later by itself, or once somebody has made room.

    It is unreachable, busy or full. One that refuses, as without credentials, stays as it is.
    """
    if isinstance(error, StorageError):
        return error.passes
    return is_transient(error) or error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_environmental(error: OSError) -> bool:
    """Whether an error is of the machine or the storage, such as a full disk, not of the file."""
    return isinstance(error, StorageError | PermissionError) or error.errno not in _CONTENT_ERRNOS


def remedy(error: BaseException) -> str | None:
    """What to do about an error of the machine, such as a full disk; None if unknown."""
    return _REMEDIES.get(error.errno or 0) if isinstance(error, OSError) else None


def _refusal(error: BaseException) -> str | None:
    """A message for an error that a retry cannot fix, or None."""
    families, code = _class_names(error), _code(error)
    if code == "NoSuchBucket":
        return "there is no such bucket; create it, or correct its name"
    if families & {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}:
        return (
            "no credentials for S3; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
            "AWS_PROFILE, or `s3:` in the spec"
        )
    if isinstance(error, PermissionError) and _response(error):
        return (
            f"access denied ({_one_line(error)}); check the credentials (AWS_* or `s3:` in the "
            "spec), and that they allow reading, writing and listing"
        )
    if is_transient(error) or isinstance(error, FileNotFoundError):
        return None
    return _one_line(error) if "BotoCoreError" in families or _response(error) else None


def _response(error: BaseException) -> dict[str, Any]:
    """S3's response to a failed request; s3fs keeps it with the cause of its own errors."""
    for one in (error, error.__cause__):
        if isinstance(found := getattr(one, "response", None), dict):
            return found
    return {}


def status_of(error: BaseException) -> int:
    """The HTTP status of S3's response; 0 if there was none."""
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)


def _code(error: BaseException) -> str:
    return str(_response(error).get("Error", {}).get("Code", ""))


def _class_names(error: BaseException) -> set[str]:
    return {base.__name__ for base in type(error).__mro__}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _prefixed(where: str, why: str) -> str:
    return f"{where}: {why}" if where else why
