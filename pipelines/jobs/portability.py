"""What of a spec and of this environment serves a job elsewhere; what is refused, and why."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from pipelines.dag import plan, sources
from pipelines.planning import lint
from pipelines.planning.findings import Finding
from pipelines.spec.data import Source
from pipelines.spec.pipeline import Spec
from pipelines.store.artifacts import Store

ADDRESSES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI")
REGIONS = ("AWS_DEFAULT_REGION", "AWS_REGION")
S3_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
MLFLOW_SECRETS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")

HERE_ONLY = ("", "file", "sqlite")  # schemes of what no other machine reaches


def findings(spec: Spec) -> list[Finding]:
    """What is wrong or odd with a spec, found without its store and data, which may be far."""
    splits = {"train": spec.data.train, "validation": spec.data.validation}
    there = {split: sources.assumed(s.pairs or 0) for split, s in splits.items() if s.path}
    encoders = {n: m.model for n, m in spec.encoders.more.items()}
    encoders |= {"t5": spec.encoders.t5, "clip": spec.encoders.clip}
    nothing_done = Store.at(os.devnull)
    return lint.check(spec, plan.make(spec, nothing_done, {**there, "encoders": encoders}))


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
    path = path.rpartition("::")[2]  # zip://::pictures.zip is read through its last part
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
