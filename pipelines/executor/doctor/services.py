"""Checks of what a run connects to: Ray, MLflow and the store."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import tempfile
import urllib.error
import urllib.request
from base64 import b64encode
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from pipelines.executor.doctor import check
from pipelines.executor.doctor.check import Check, Checks, Subject, connect, reason
from pipelines.executor.doctor.machine import existing
from pipelines.lineage.address import tracking_uri, without_credentials
from pipelines.store.artifacts import Store
from pipelines.store.scratch import temp_suffix

# -- Ray and MLflow ------------------------------------------------------------------------------


def ray(_: Subject) -> Checks:
    installed = f"ray {version('ray')}"
    address = os.environ.get("RAY_ADDRESS", "")
    if not address:
        yield Check("Ray", "ok", f"{installed}; starts on this machine, RAY_ADDRESS is not set")
        return
    if address in ("auto", "local"):
        yield Check("Ray", "ok", f"{installed}; RAY_ADDRESS is {address}")
        return
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 10001)
        connect(parts.hostname or "", port)
    except (OSError, ValueError) as error:
        yield Check(
            "Ray",
            "fault",
            f"{installed}; nothing answers at RAY_ADDRESS {address} ({reason(error)})",
            "start the cluster, correct RAY_ADDRESS, or unset it to run on this machine",
        )
    else:
        yield Check("Ray", "ok", f"{installed}; RAY_ADDRESS {address} answers")


def mlflow(subject: Subject) -> Checks:
    uri = tracking_uri(subject.spec.tracking if subject.spec else None, subject.store)
    kind = uri.partition(":")[0].partition("+")[0]
    installed = f"mlflow {version('mlflow')}"
    if kind in ("http", "https"):
        yield _mlflow_server(uri, installed)
    elif kind == "sqlite":
        yield _sqlite(Path(uri.partition(":///")[2]), installed)
    elif kind in ("postgresql", "mysql"):
        parts = urlsplit(uri)
        place = f"{kind} at {parts.netloc.rpartition('@')[2]}"
        try:
            port = parts.port or {"postgresql": 5432, "mysql": 3306}[kind]
            connect(parts.hostname or "", port)
        except (OSError, ValueError) as error:
            remedy = "start the database, or correct `tracking:` or MLFLOW_TRACKING_URI"
            yield Check("MLflow", "fault", f"{place} does not answer ({reason(error)})", remedy)
        else:
            yield Check("MLflow", "ok", f"{installed}; {place} answers")
    else:
        yield Check("MLflow", "ok", f"{installed}; an address of kind {kind!r} is not checked")


def _mlflow_server(uri: str, installed: str) -> Check:
    shown = without_credentials(uri)
    remedy = "start it, or correct `tracking:` in the spec or MLFLOW_TRACKING_URI"
    request = urllib.request.Request(f"{shown}/version", headers=_credentials(urlsplit(uri).netloc))
    try:
        with urllib.request.urlopen(request, timeout=check.ANSWER_S) as answer:
            told = answer.read(64).decode("utf-8", "replace").strip()
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or a token"
            return Check("MLflow", "fault", f"{shown} refuses access ({error.code})", remedy)
        return Check("MLflow", "fault", f"{shown} answers with HTTP {error.code}", remedy)
    except (OSError, ValueError) as error:
        return Check("MLflow", "fault", f"{shown} does not answer ({reason(error)})", remedy)
    if not told[:1].isdigit():
        return Check("MLflow", "fault", f"{shown} is no MLflow server", remedy)
    found = f"{installed}; the server at {shown} is {told}"
    if told.partition(".")[0] != version("mlflow").partition(".")[0]:
        return Check("MLflow", "warning", found, "install the same major version on both sides")
    return Check("MLflow", "ok", found)


def _credentials(netloc: str) -> dict[str, str]:
    """The header that MLflow's client would send."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    user = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    both = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}" if user else ""
    both = both or netloc.rpartition("@")[0]
    return {"Authorization": f"Basic {b64encode(both.encode()).decode()}"} if both else {}


def _sqlite(file: Path, installed: str) -> Check:
    if not file.exists():
        return Check("MLflow", "ok", f"{installed}; the first run creates {file}")
    try:
        opened = sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=check.ANSWER_S)
        with contextlib.closing(opened) as database:
            database.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error as error:
        remedy = f"move {file} away; the next run of each pipeline writes its record again"
        return Check("MLflow", "fault", f"{file} is no record of MLflow ({error})", remedy)
    return Check("MLflow", "ok", f"{installed}; the record is {file}")


# -- the store -----------------------------------------------------------------------------------


def store(subject: Subject) -> Checks:
    yield _folder(Path(subject.root)) if subject.store.is_local else _bucket(subject.store)


def _folder(path: Path) -> Check:
    remedy = "set `storage:` in the spec, or --storage, to a folder that can be written"
    if not path.exists():
        above = existing(path)
        if not above.is_dir() or not os.access(above, os.W_OK):
            return Check("store", "fault", f"{path} cannot be created in {above}", remedy)
        return Check("store", "ok", f"the first run creates {path}")
    try:
        Store.open(str(path))
        with tempfile.NamedTemporaryFile(dir=path, prefix=".doctor-") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ValueError as error:
        why = str(error.__cause__ or error)
        return Check("store", "fault", f"{path} cannot be written ({why})", remedy)
    except OSError as error:
        return Check(
            "store",
            "fault",
            f"{path} has no file locks ({reason(error)}), by which one driver keeps others out",
            "mount it with locks (NFS 4), or use another folder or a bucket",
        )
    return Check("store", "ok", f"{path} can be written")


def _bucket(target: Store) -> Check:
    from pipelines.store.compare_and_swap import Snapshot, compare_and_swap, read_snapshot
    from pipelines.store.remote import StorageError

    path = f".doctor{temp_suffix()}.tmp"
    try:
        Store.open(target.root)
        if not target.root.startswith(("s3://", "s3a://")):
            return Check(
                "store",
                "warning",
                f"{target.root} can be written, but this kind of store has no conditional writes",
                "start a pipeline from one machine only, or use S3",
            )
        try:
            created = compare_and_swap(target, path, Snapshot(), b"first")
            again = compare_and_swap(target, path, Snapshot(), b"second")
            before = read_snapshot(target, path)
            changed = compare_and_swap(target, path, before, b"third")
            stale = compare_and_swap(target, path, before, b"fourth")
        finally:
            with contextlib.suppress(OSError):
                target.remove(path)
    except (ValueError, StorageError) as error:
        found = str(error).removeprefix("storage ")
        remedy = "correct `storage:`, `s3:` or the AWS_* variables"
        return Check("store", "fault", found, remedy)
    if (created, again, changed, stale) != (True, False, True, False):
        return Check(
            "store",
            "fault",
            f"{target.root} ignores conditional writes (If-Match, If-None-Match), by which one "
            "driver keeps others out",
            "use a server that has them, such as Amazon S3, MinIO or Ceph",
        )
    return Check("store", "ok", f"{target.root} can be written, conditional writes work")
