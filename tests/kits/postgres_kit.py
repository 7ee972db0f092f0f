"""A PostgreSQL of the test's own on loopback, run by a user who may do nothing else."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

USER, PASSWORD, NAME = "mlflow", "made-for-this-test", "mlflow"


def programs() -> Path | None:
    """Where PostgreSQL's programs are; Debian keeps them out of the PATH."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    known = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return known[-1].parent if known else None


@contextlib.contextmanager
def running(port: int) -> Iterator[None]:
    """Answers at the port while in it. PostgreSQL refuses to be root's."""
    where, who = programs(), None
    # Not below tmp_path, which nobody but its owner may enter.
    with tempfile.TemporaryDirectory(prefix="ediffi-postgres-") as folder:
        if os.geteuid() == 0:
            who = pwd.getpwnam("postgres")
            os.chown(folder, who.pw_uid, who.pw_gid)
        as_user = {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []} if who else {}
        secret = Path(folder) / "secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        subprocess.run(
            [
                *(where / "initdb", "--pgdata", f"{folder}/data", "--username", USER),
                *("--auth", "scram-sha-256", "--pwfile", secret, "--encoding", "UTF8"),
                *("--locale", "C", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            cwd=folder,
            **as_user,
        )
        with (Path(folder) / "log").open("wb") as log:
            server = subprocess.Popen(
                [
                    *(where / "postgres", "-D", f"{folder}/data", "-p", str(port)),
                    *("-h", "127.0.0.1", "-k", folder, "-c", "fsync=off"),
                ],
                stdout=log,
                stderr=log,
                cwd=folder,
                start_new_session=True,
                **as_user,
            )
        try:
            made = {**os.environ, "PGPASSWORD": PASSWORD}
            ask = [where / "psql", "-h", "127.0.0.1", "-p", str(port), "-U", USER, "-d", "postgres"]
            while subprocess.run(
                [*ask, "-c", f"create database {NAME}"], env=made, capture_output=True
            ).returncode:
                assert server.poll() is None, (Path(folder) / "log").read_text()
            yield
        finally:
            server.send_signal(signal.SIGINT)  # does not wait for clients
            server.wait()
