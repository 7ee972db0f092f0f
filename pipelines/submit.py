"""A pipeline as a job of a Ray cluster: what is sent to its job server, and what is refused."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines import jobs
from pipelines.data.settings import Source
from pipelines.spec import Spec

STOP_WAIT_S = 60
"""What a stopped driver has to save and leave before Ray kills it. By itself Ray gives it 3 s."""

ADDRESSES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI")
REGIONS = ("AWS_DEFAULT_REGION", "AWS_REGION")
S3_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
MLFLOW_SECRETS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")

HERE_ONLY = ("", "file", "sqlite")  # schemes of what no other machine reaches


def submit(
    client: Any,
    spec: Spec,
    file: Path,
    storage: str,
    *,
    working_dir: Path | None,
    credentials: bool,
) -> str:
    """Has a cluster run a pipeline; → the job's id.

    The job does not depend on this machine's disk: the spec travels with it, or with the working
    directory that it lies in.

    Args:
        file: where the spec was read.
        storage: the store's path or address.
        working_dir: sent along, its code coming before what the cluster has installed.
        credentials: whether secrets may be sent.

    Raises:
        ValueError: The cluster could not work with it, or is at work on the pipeline already.
    """
    variables = passed(spec, os.environ, credentials=credentials)
    if working_dir is None:
        check_paths(spec)
    if not jobs.is_here(client):
        check_reach(spec, storage, variables)
    job = next_id(spec.name, storage, jobs.listed(client))
    with tempfile.TemporaryDirectory() as scratch:
        folder, command = Path(scratch), ["ediffi"]
        if working_dir is None:
            shutil.copy(file, folder / file.name)
            sent = file.name
        else:
            folder, command = working_dir, ["python", "-m", "pipelines.cli"]
            sent = within(file, working_dir)
        try:
            with jobs.answered(f"job {job}"):
                client.submit_job(
                    submission_id=job,
                    entrypoint=shlex.join([*command, "run", sent, "--storage", storage]),
                    metadata={jobs.PIPELINE: spec.name, jobs.STORAGE: storage},
                    runtime_env={
                        "working_dir": str(folder),
                        "excludes": [".git"],
                        "env_vars": {**variables, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
                    },
                )
        except ValueError:
            next_id(spec.name, storage, jobs.listed(client))  # says so, if another was quicker
            raise
    return job


def within(file: Path, folder: Path) -> str:
    """The spec's path in the directory that is sent."""
    try:
        return str(file.resolve().relative_to(folder.resolve()))
    except ValueError:
        raise ValueError(
            f"{file} is not in {folder}, which is sent; move it there, or leave out --working-dir"
        ) from None


def next_id(pipeline: str, storage: str, known: Iterable[Any]) -> str:
    """The id of a pipeline's next job, which Ray takes once; ValueError if one is at work."""
    attempts = [0]
    for job in known:
        if number := re.fullmatch(rf"{re.escape(pipeline)}-(\d+)", job.submission_id):
            attempts.append(int(number[1]))
        same = jobs.of(job) == (pipeline, storage)
        if same and not job.status.is_terminal():
            raise ValueError(
                f"pipeline {pipeline} is job {job.submission_id} already, which is "
                f"{job.status.lower()}; see `ediffi logs {job.submission_id} --follow`, or end it "
                f"with `ediffi stop {job.submission_id}`"
            )
    return f"{pipeline}-{max(attempts) + 1}"


def passed(spec: Spec, environment: Mapping[str, str], *, credentials: bool) -> dict[str, str]:
    """Variables of this environment that the job gets; what the spec says itself is left to it.

    Whoever may look at the cluster can read them, so secrets are sent only if asked.
    """
    own = {*spec.s3.variables(), *(["MLFLOW_TRACKING_URI"] if spec.tracking else [])}
    names = [*ADDRESSES, *REGIONS]
    if credentials:
        names += MLFLOW_SECRETS
        names += () if spec.s3.key or spec.s3.profile else S3_SECRETS
    found = {n: environment[n] for n in names if environment.get(n) and n not in own}
    secret = {
        "`s3.key:` in the spec": bool(spec.s3.key),
        "`tracking:` in the spec": "@" in (spec.tracking or ""),
        **{name: "@" in found.get(name, "") for name in ADDRESSES},
    }
    for where, holds in secret.items():
        if holds and not credentials:
            raise ValueError(
                f"{where} holds a secret, which whoever may look at the cluster could read; "
                "leave it to the cluster's own environment, or send it with --pass-credentials"
            )
    return found


def check_paths(spec: Spec) -> None:
    """Whether the job finds what the spec names by path; ValueError if not.

    It works in a folder of its own, in which nothing lies but the spec.
    """
    encoders = {"encoders.t5": spec.encoders.t5, "encoders.clip": spec.encoders.clip}
    encoders |= {f"encoders.more.{n}.model": m.model for n, m in spec.encoders.more.items()}
    encoders |= {"evaluate.clip": spec.evaluate.clip or ""}
    named = [
        *(("data.train.path", path) for path in paths_of(spec.data.train)),
        *(("data.validation.path", path) for path in paths_of(spec.data.validation)),
        *((key, name) for key, name in encoders.items() if name and Path(name).is_dir()),
        ("tracking", spec.tracking),
    ]
    for key, path in named:
        if path and is_relative(path):
            raise ValueError(
                f"`{key}:` is {path!r}, and the job works in another folder; write an address, or "
                "a whole path that the cluster's machines have"
            )


def paths_of(source: Source) -> list[str]:
    return [source.path] if isinstance(source.path, str) else source.path or []


def is_relative(path: str) -> bool:
    parts = urlsplit(path)
    if parts.scheme == "sqlite":
        return not parts.path.startswith("//")
    return "://" not in path and not Path(path).is_absolute()


def check_reach(spec: Spec, storage: str, variables: Mapping[str, str]) -> None:
    """Whether a cluster elsewhere reaches what is named here; ValueError if not."""
    if is_here_only(storage):
        raise ValueError(
            f"storage {storage} is on this machine, and the cluster is not; set `storage:` in the "
            "spec, or --storage, to a bucket that both reach"
        )
    addresses = {
        "`tracking:` in the spec": spec.tracking,
        "`s3.endpoint_url:` in the spec": spec.s3.endpoint_url,
        **{name: variables.get(name) for name in ADDRESSES},
    }
    for where, address in addresses.items():
        if address and is_here_only(address):
            raise ValueError(
                f"{where} leads to this machine alone, and the cluster is not on it; write an "
                "address that both reach"
            )


def is_here_only(address: str) -> bool:
    """Whether it names a path or a server that other machines cannot mean by it."""
    parts = urlsplit(address)
    if parts.scheme in HERE_ONLY:
        return True
    host = parts.hostname or ""
    return host in ("localhost", "::1", "0.0.0.0") or host.startswith("127.")
