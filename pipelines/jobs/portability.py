"""Check and collect what a job on another machine needs: paths, addresses, environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from pipelines.dag import plan, sources
from pipelines.formatting import without_passwords
from pipelines.planning import lint
from pipelines.planning.findings import Finding
from pipelines.spec.data import Source
from pipelines.spec.notify import SMTP_PASSWORD
from pipelines.spec.pipeline import Spec
from pipelines.store.artifacts import Store

ADDRESSES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI")
REGIONS = ("AWS_DEFAULT_REGION", "AWS_REGION")
S3_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
MLFLOW_SECRETS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")

LOCAL_SCHEMES = ("", "file", "sqlite")
"""Schemes of addresses that no other machine can reach."""


def lint_without_data(spec: Spec) -> list[Finding]:
    """Check a spec without looking at its store and data, which this machine may not reach."""
    splits = {"train": spec.data.train, "validation": spec.data.validation}
    assumed = {split: sources.assumed(s.pairs or 0) for split, s in splits.items() if s.path}
    encoders = {n: m.model for n, m in spec.encoders.more.items()}
    encoders |= {"t5": spec.encoders.t5, "clip": spec.encoders.clip}
    encoders |= {"scorer": spec.evaluate.clip} if spec.evaluate.clip else {}
    features = {n: f.settings() for n, f in spec.evaluate.features.items()}
    found = {**assumed, "encoders": encoders, "features": features}
    return lint.check(spec, plan.make(spec, Store.at(os.devnull), found))


def job_environment(
    spec: Spec, environment: Mapping[str, str], *, credentials: bool
) -> dict[str, str]:
    """Environment variables to send with the job, without those that the spec sets itself.

    Everyone with access to the cluster can read them, so secrets are sent only on request.

    Args:
        environment: this process's environment.
        credentials: whether to send secrets.

    Raises:
        ValueError: The spec or an address contains a secret, and none may be sent.
    """
    own = {*spec.s3.variables(), *(["MLFLOW_TRACKING_URI"] if spec.tracking else [])}
    names = [*ADDRESSES, *REGIONS]
    if credentials:
        names += MLFLOW_SECRETS
        names += [SMTP_PASSWORD] if spec.notify.email and spec.notify.email.user else []
        names += () if spec.s3.key or spec.s3.profile else S3_SECRETS
    found = {n: environment[n] for n in names if environment.get(n) and n not in own}
    secret = {
        "`s3.key:` in the spec": bool(spec.s3.key),
        "`notify.webhook:` in the spec": bool(spec.notify.webhook),
        "`notify.slack:` in the spec": bool(spec.notify.slack),
        "`tracking:` in the spec": _has_secret(spec.tracking or ""),
        **{name: _has_secret(found.get(name, "")) for name in ADDRESSES},
    }
    for where, holds in secret.items():
        if holds and not credentials:
            raise ValueError(
                f"{where} contains a secret, which everyone with access to the cluster could read; "
                "set it in the cluster's own environment, or send it with --pass-credentials"
            )
    return found


def _has_secret(address: str) -> bool:
    """Whether an address holds a user, who may be a token, or a password."""
    return "@" in address or without_passwords(address) != address


def check_paths(spec: Spec) -> None:
    """Refuse relative paths in a spec: the job runs in a folder that contains only the spec.

    Raises:
        ValueError: A path is relative.
    """
    encoders = {"encoders.t5": spec.encoders.t5, "encoders.clip": spec.encoders.clip}
    encoders |= {f"encoders.more.{n}.model": m.model for n, m in spec.encoders.more.items()}
    encoders |= {"evaluate.clip": spec.evaluate.clip or ""}
    features = spec.evaluate.features.items()
    encoders |= {f"evaluate.features.{n}.model": f.model or "" for n, f in features}
    named = [
        *((f"evaluate.features.{n}.weights", f.weights) for n, f in features),
        *(("data.train.path", path) for path in source_paths(spec.data.train)),
        *(("data.validation.path", path) for path in source_paths(spec.data.validation)),
        *((key, name) for key, name in encoders.items() if name and Path(name).is_dir()),
        ("tracking", spec.tracking),
    ]
    for key, path in named:
        if path and is_relative(path):
            raise ValueError(
                f"`{key}:` is {path!r}, but the job runs in another folder; write an address, or "
                "an absolute path that exists on the cluster's machines"
            )


def source_paths(source: Source) -> list[str]:
    """The paths or addresses of a data set."""
    return [source.path] if isinstance(source.path, str) else source.path or []


def is_relative(path: str) -> bool:
    """Whether a path or address depends on the current folder."""
    path = path.rpartition("::")[2]  # of zip://::pictures.zip the part after :: is the file
    parts = urlsplit(path)
    if parts.scheme == "sqlite":
        return not parts.path.startswith("//")
    return "://" not in path and not Path(path).is_absolute()


def check_reachable(spec: Spec, storage: str, variables: Mapping[str, str]) -> None:
    """Refuse addresses that a cluster on other machines cannot reach.

    Args:
        storage: the store's path or address.
        variables: environment variables that are sent with the job.

    Raises:
        ValueError: An address is local to this machine.
    """
    if is_local_only(storage):
        raise ValueError(
            f"storage {storage} is on this machine, but the cluster is not; set `storage:` in the "
            "spec, or --storage, to a bucket that both can reach"
        )
    addresses = {
        "`tracking:` in the spec": spec.tracking,
        "`s3.endpoint_url:` in the spec": spec.s3.endpoint_url,
        **{name: variables.get(name) for name in ADDRESSES},
    }
    for where, address in addresses.items():
        if address and is_local_only(address):
            raise ValueError(
                f"{where} points to this machine, but the cluster is not on it; write an address "
                "that both can reach"
            )


def is_local_only(address: str) -> bool:
    """Whether an address is a path, or a server, that means something else on other machines."""
    parts = urlsplit(address)
    if parts.scheme in LOCAL_SCHEMES:
        return True
    host = parts.hostname or ""
    return host in ("localhost", "::1", "0.0.0.0") or host.startswith("127.")
