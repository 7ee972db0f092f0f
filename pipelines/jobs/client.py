"""The jobs of a Ray cluster that are pipelines: through its job server, from any machine."""

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
"""Keys of a job's metadata."""

STOPPED = 128 + 15
"""The exit code of a job that was stopped: a shell's for a process that SIGTERM ended."""

LOOK_S = 0.5
RECONNECTS = 6  # with doubling waits they bridge half a minute, as a restarted head node needs


def connect(address: str) -> Any:
    """Ray's client for the job server at an address; ValueError if none answers there."""
    from ray.job_submission import JobSubmissionClient

    if urlsplit(address).scheme not in ("http", "https"):
        raise ValueError(f"write --address as http://HOST:8265, got {address!r}")
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # which, as RAY_ADDRESS, comes before arguments
    for name in ("job.sdk", "dashboard_sdk"):
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.WARNING)
    with answered(address):
        return JobSubmissionClient(address)


@contextlib.contextmanager
def answered(what: str) -> Iterator[None]:
    """Makes a ValueError of what a job server refuses, and of one that is not there."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise ValueError(
            f"{what}: the cluster asks for a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH"
        ) from None
    except requests.HTTPError as error:
        raise ValueError(f"{what}: the job server refuses: {error}") from None
    except (ConnectionError, requests.RequestException) as error:
        raise ValueError(
            f"{what}: no job server answers ({type(error).__name__}); give the address of the "
            "cluster's dashboard, http://HOST:8265, and have `ray[default]` installed there"
        ) from None
    except RuntimeError as error:
        raise ValueError(f"{what}: {_last_line(error)}") from None


def _last_line(error: BaseException) -> str:
    """Of an answer: the server adds its traceback."""
    lines = [line.strip(" .") for line in str(error).splitlines()]
    said = next((line for line in reversed(lines) if line), type(error).__name__)
    return re.sub(r"^Request failed with status code \d+: ", "", said)


def is_here(client: Any) -> bool:
    """Whether the cluster is this machine and no other."""
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    try:
        nodes = list_nodes(address=client.get_address(), filters=[("state", "=", "ALIVE")])
    except RayStateApiException as error:
        raise ValueError(f"the cluster does not say which machines it has: {error}") from None
    return all(_is_of_this_machine(node.node_ip) for node in nodes)


def _is_of_this_machine(ip: str) -> bool:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((ip, 0))  # an address of another machine cannot be
        except OSError:
            return False
    return True


def listed(client: Any) -> list[Any]:
    """All jobs that the cluster was sent, the last first; see :func:`of` for which are ours."""
    with answered("the cluster's jobs"):
        found = [job for job in client.list_jobs() if job.submission_id]
    return sorted(found, key=lambda job: -(job.start_time or 0))


def of(job: Any) -> tuple[str, str] | None:
    """The pipeline and the store of a job; None if it is none of ours."""
    about = job.metadata or {}
    return (about[PIPELINE], about[STORAGE]) if PIPELINE in about else None


def details(client: Any, job: str) -> Any:
    with answered(f"job {job}"):
        return client.get_job_info(job)


def logs(client: Any, job: str) -> str:
    """What a job has printed."""
    with answered(f"job {job}"):
        return str(client.get_job_logs(job))


def follow(client: Any, job: str, write: Callable[[str], None]) -> Any:
    """Passes on what a job prints until it has ended; → its details then.

    A connection that is lost is made again, and goes on where it broke off.
    """
    import aiohttp

    shown = failures = 0

    async def tail() -> None:
        """The log from its beginning, of which a part may have been shown."""
        nonlocal shown
        at = 0
        async for text in client.tail_job_logs(job):
            fresh = text[max(0, shown - at) :]
            at += len(text)
            shown = max(shown, at)
            write(fresh)

    found = details(client, job)
    while not found.status.is_terminal():
        try:
            asyncio.run(tail())
            found = client.get_job_info(job)
            failures = 0
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            failures += 1
            if failures > RECONNECTS:
                raise ValueError(
                    f"job {job}: its cluster does not answer any more ({error}); the job may be at "
                    f"work still, see `ediffi jobs {job}`"
                ) from error
        if not found.status.is_terminal():
            time.sleep(LOOK_S * 2**failures)
    write(logs(client, job)[shown:])
    return found


def stop(client: Any, job: str) -> Any:
    """Has a job's driver save and leave, waits until it has; → its details then."""
    found = details(client, job)
    if found.status.is_terminal():
        raise ValueError(f"job {job} has ended already: {found.status.lower()}")
    with answered(f"job {job}"):
        client.stop_job(job)
    while not (found := details(client, job)).status.is_terminal():
        time.sleep(LOOK_S)
    return found


def exit_code(job: Any) -> int:
    """Of an ended job's command."""
    if job.driver_exit_code is not None:
        return int(job.driver_exit_code)
    return STOPPED if job.status == "STOPPED" else 1


def why_not_begun(job: Any) -> str:
    """Why a job failed before its command began; nothing of one whose own log says it."""
    if job.status != "FAILED" or job.error_type == "JOB_ENTRYPOINT_COMMAND_ERROR":
        return ""
    return " ".join((job.message or job.error_type or "").split())
