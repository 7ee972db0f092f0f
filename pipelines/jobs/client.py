"""Client of a Ray cluster's job server, for the jobs that are pipelines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

PIPELINE, STORAGE = "ediffi.pipeline", "ediffi.storage"
"""Keys of a job's metadata that hold its pipeline and store."""

STOPPED = 128 + 15
"""Exit code of a stopped job: what a shell reports for a process ended by SIGTERM."""

POLL_S = 0.5
MAX_RECONNECTS = 6
"""With doubling waits they bridge half a minute, which a restarted head node needs."""


def connect(address: str) -> Any:
    """Connect to the job server at an address.

    Returns:
        Ray's ``JobSubmissionClient``.

    Raises:
        ValueError: The address is malformed, or no job server answers there.
    """
    from ray.job_submission import JobSubmissionClient

    if urlsplit(address).scheme not in ("http", "https"):
        raise ValueError(f"write --address as http://HOST:8265, got {address!r}")
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray prefers it to the argument
    for name in ("job.sdk", "dashboard_sdk"):
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.WARNING)
    with server_errors(address):
        return JobSubmissionClient(address)


@contextlib.contextmanager
def server_errors(what: str) -> Iterator[None]:
    """Turn errors of a job server, or its absence, into ValueError.

    Args:
        what: subject of the error text.
    """
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise ValueError(
            f"{what}: the cluster requires a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH"
        ) from None
    except requests.HTTPError as error:
        raise ValueError(f"{what}: the job server refused the request: {error}") from None
    except (ConnectionError, requests.RequestException) as error:
        raise ValueError(
            f"{what}: no job server answers ({type(error).__name__}); give the address of the "
            "cluster's dashboard, http://HOST:8265, and install `ray[default]` on the cluster"
        ) from None
    except RuntimeError as error:
        raise ValueError(f"{what}: {_last_line(error)}") from None


def _last_line(error: BaseException) -> str:
    """Last line of an error; the job server puts its traceback before it."""
    lines = [line.strip(" .") for line in str(error).splitlines()]
    last = next((line for line in reversed(lines) if line), type(error).__name__)
    return re.sub(r"^Request failed with status code \d+: ", "", last)


def is_local_cluster(client: Any) -> bool:
    """Whether the cluster consists of this machine alone."""
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    try:
        nodes = list_nodes(address=client.get_address(), filters=[("state", "=", "ALIVE")])
    except RayStateApiException as error:
        raise ValueError(f"the cluster does not list its machines: {error}") from None
    return all(_is_own_address(node.node_ip) for node in nodes)


def _is_own_address(ip: str) -> bool:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((ip, 0))  # fails for an address of another machine
        except OSError:
            return False
    return True


def list_jobs(client: Any) -> list[Any]:
    """All submitted jobs of the cluster, newest first, pipelines or not (:func:`pipeline_of`)."""
    with server_errors("the cluster's jobs"):
        found = [job for job in client.list_jobs() if job.submission_id]
    return sorted(found, key=lambda job: -(job.start_time or 0))


def pipeline_of(job: Any) -> tuple[str, str] | None:
    """(pipeline, store) of a job; None if it is not a pipeline."""
    metadata = job.metadata or {}
    return (metadata[PIPELINE], metadata[STORAGE]) if PIPELINE in metadata else None


def job_info(client: Any, job: str) -> Any:
    """Ray's ``JobDetails`` of a job."""
    with server_errors(f"job {job}"):
        return client.get_job_info(job)


def logs(client: Any, job: str) -> str:
    """The output of a job so far."""
    with server_errors(f"job {job}"):
        return str(client.get_job_logs(job))


def follow(client: Any, job: str, write: Callable[[str], None]) -> Any:
    """Follow a job's output until it ends, across lost connections.

    Args:
        write: receives each new part of the output once.

    Returns:
        The ended job's ``JobDetails``.
    """
    import aiohttp

    shown = failures = 0

    async def tail() -> None:
        """Read the log from its beginning, skipping what has been shown."""
        nonlocal shown
        at = 0
        async for text in client.tail_job_logs(job):
            fresh = text[max(0, shown - at) :]
            at += len(text)
            shown = max(shown, at)
            write(fresh)

    found = job_info(client, job)
    while not found.status.is_terminal():
        try:
            asyncio.run(tail())
            found = client.get_job_info(job)
            failures = 0
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            failures += 1
            if failures > MAX_RECONNECTS:
                raise ValueError(
                    f"job {job}: its cluster no longer answers ({error}); the job may still be "
                    f"running, see `ediffi jobs {job}`"
                ) from error
        if not found.status.is_terminal():
            time.sleep(POLL_S * 2**failures)
    write(logs(client, job)[shown:])
    return found


def stop(client: Any, job: str) -> Any:
    """Ask a job's driver to save and stop, and wait until it has.

    Returns:
        The ended job's ``JobDetails``.

    Raises:
        ValueError: The job has ended already.
    """
    found = job_info(client, job)
    if found.status.is_terminal():
        raise ValueError(f"job {job} has ended already: {found.status.lower()}")
    with server_errors(f"job {job}"):
        client.stop_job(job)
    while not (found := job_info(client, job)).status.is_terminal():
        time.sleep(POLL_S)
    return found


def exit_code(job: Any) -> int:
    """Exit code of an ended job's command."""
    if job.driver_exit_code is not None:
        return int(job.driver_exit_code)
    return STOPPED if job.status == "STOPPED" else 1


def startup_error(job: Any) -> str:
    """Why a job failed before its command started; empty if it did start, and its log says more."""
    if job.status != "FAILED" or job.error_type == "JOB_ENTRYPOINT_COMMAND_ERROR":
        return ""
    return " ".join((job.message or job.error_type or "").split())
