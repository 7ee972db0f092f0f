"""What the pipeline and fault tests share: one finished smoke run, and ways to run and to kill."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import planted
import pytest
import yaml
from paths import SPECS

SMOKE = SPECS / "smoke.yaml"
EDIFFI = Path(sys.executable).with_name("ediffi")
RUN = (EDIFFI, "run")
PATIENCE_S = 900  # ends a wait that would never end; no test measures time


def environment(**more: str) -> dict[str, str]:
    """This process's, without what would send Ray, MLflow or a verb elsewhere."""
    elsewhere = ("RAY_", "MLFLOW_", "EDIFFI_STORE")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(elsewhere)}
    return {**kept, **more}


@contextlib.contextmanager
def own_ray(**variables: str) -> Iterator[None]:
    """An environment in which Ray starts on this machine, and its workers find the tests' kits."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("RAY_")]:
            patch.delenv(name)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


def ediffi(
    *args: Any, patience_s: float = PATIENCE_S, **env: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own, to its end."""
    return subprocess.run(
        [EDIFFI, *map(str, args)],
        capture_output=True,
        text=True,
        env=environment(**env),
        timeout=patience_s,
    )


def call(*args: Any) -> int:
    """Runs the command in this process, where imports are paid once; → its exit code."""
    from pipelines import cli

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ediffi", *map(str, args)])
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def said(*args: Any, **env: str) -> str:
    """Runs the command in this process, where it must succeed; → what it printed."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        for name in set(os.environ) - set(environment()):
            patch.delenv(name)
        for name, value in env.items():
            patch.setenv(name, value)
        code = call(*args)
    assert code == 0, out.getvalue()
    return out.getvalue()


def spec_with(to: Path, change: Callable[[dict[str, Any]], Any], base: Path = SMOKE) -> Path:
    """Writes a copy of a spec after ``change(its data)``."""
    raw = yaml.safe_load(base.read_text())
    change(raw)
    to.write_text(yaml.safe_dump(raw))
    return to


def strict_json(text: str) -> Any:
    """JSON as other languages read it: no NaN, no Infinity."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def versions(store: Path) -> list[Path]:
    """The data-set versions in a store, as files."""
    return sorted(store.glob("nodes/embed/*/dataset.parquet"))


def shards_of(version: Path) -> list[str]:
    """Where a version's shards lie, from the store's root."""
    import pyarrow.parquet as pq

    return pq.read_table(version, columns=["path"])["path"].to_pylist()


# -- the shared run ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """A store in which the smoke pipeline was run twice: for the first time, and for nothing."""

    store: Path
    first: str
    """What the first run printed."""

    second: str
    errors: str
    """What the first wrote to stderr."""

    def folder(self, node: str) -> Path:
        """Of a node, such as ``train/base/E0_0``."""
        [found] = self.store.glob(f"nodes/{node}-*")
        return found

    def manifest(self, node: str) -> dict[str, Any]:
        return json.loads((self.folder(node) / "manifest.json").read_text())

    def copy(self, to: Path, *without: str) -> Path:
        """A store with the same finished nodes but those whose id starts with one of these.

        Of the embedded shards it has those that its versions list.
        """

        def skip(folder: str, names: list[str]) -> list[str]:
            at = Path(folder).relative_to(self.store / "nodes")
            return [n for n in names if str(at / n).startswith(without)]

        shutil.copytree(self.store / "nodes", to / "nodes", ignore=skip if without else None)
        for shard in (p for version in versions(to) for p in shards_of(version)):
            for ending in (".parquet", ".json"):
                file = (to / shard).with_suffix(ending)
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2((self.store / shard).with_suffix(ending), file)
        return to


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The finished smoke run; one for all workers of a test session."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # each worker has its own folder below the session's
    store, logs = base / "smoke-store", base / "smoke-logs"
    with (base / "smoke.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not logs.exists():
            first = ediffi("run", SMOKE, "--storage", store, **planted.environment())
            assert first.returncode == 0, first.stdout + first.stderr
            # With nothing left to do Ray is not started: this address would fail at once.
            env = planted.environment() | {"RAY_ADDRESS": "127.0.0.1:9"}
            second = said("run", SMOKE, "--storage", store, **env)
            logs.mkdir()
            (logs / "first").write_text(first.stdout)
            (logs / "errors").write_text(first.stderr)
            (logs / "second").write_text(second)
    return Finished(store, *((logs / name).read_text() for name in ("first", "second", "errors")))


# -- processes -----------------------------------------------------------------------------------


def _parent_and_state(pid: int) -> tuple[int, str] | None:
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return int(parent), state


def is_alive(pid: int) -> bool:
    found = _parent_and_state(pid)
    return found is not None and found[1] != "Z"


def title(pid: int) -> str:
    """The process's name as ``ps`` shows it; Ray writes what a worker does into it."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def wait_for_the_dead(pids: Iterable[int]) -> None:
    """Until none of Ray's processes among them is left; a killed driver's go by themselves.

    They notice that their raylet has died, on a busy machine seconds after it has.
    """
    deadline = time.monotonic() + PATIENCE_S
    while alive := {p: title(p) for p in pids if is_alive(p) and "ray" in title(p)}:
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)


def descendants(root: int) -> set[int]:
    """Every living process below one, itself left out."""
    parents = {
        pid: found[0]
        for pid in (int(d.name) for d in Path("/proc").iterdir() if d.name.isdigit())
        if (found := _parent_and_state(pid))
    }
    below, new = set(), {root}
    while new:
        new = {p for p, parent in parents.items() if parent in new} - below
        below |= new
    return below


def kill(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Driver:
    """An ``ediffi run``, or another program, in the background: to be watched and killed."""

    def __init__(
        self, spec: Path, store: Path, log: Path, program: tuple[Any, ...] = RUN, **env: str
    ) -> None:
        self.log = log
        self.out = log.open("w")
        self.process = subprocess.Popen(
            [*program, spec, "--storage", store],
            stdout=self.out,
            stderr=subprocess.STDOUT,
            env=environment(**env),
        )
        self.pid = self.process.pid
        self.seen: set[int] = set()

    def text(self) -> str:
        return self.log.read_text()

    def look(self) -> set[int]:
        """Its descendants now; they are remembered, for a kill orphans them."""
        below = descendants(self.pid)
        self.seen |= below
        return below

    def workers(self) -> list[int]:
        """Ray's workers below it; not an agent, with which Ray ends its node."""
        titles = {p: title(p) for p in sorted(self.look())}
        return [p for p, t in titles.items() if t.startswith("ray::") and "Agent" not in t]

    def until(self, reached: Callable[[], Any], what: str) -> Any:
        """Waits for a moment of the run; → what ``reached`` gave.

        Asking takes at most a quarter of a core, which the run needs.
        """
        deadline, looked, used = time.monotonic() + PATIENCE_S, 0.0, time.thread_time()
        while not (found := reached()):
            assert self.process.poll() is None, f"ended before {what}:\n{self.text()}"
            assert time.monotonic() < deadline, f"never came to {what}:\n{self.text()}"
            if time.monotonic() - looked > 0.5:
                self.look()
                looked = time.monotonic()
            time.sleep(max(0.01, 3 * (time.thread_time() - used)))
            used = time.thread_time()
        return found

    def kill(self, *, workers: bool = False) -> None:
        """SIGKILL to the driver, and with ``workers`` to all it started, as when a pod dies."""
        below = self.look() if workers else set()
        kill(self.pid, *below)
        self.process.wait()

    def finish(self, patience_s: float = PATIENCE_S) -> int:
        """Waits for the end; → the exit code."""
        self.process.wait(patience_s)
        self.out.close()
        return self.process.returncode


@contextlib.contextmanager
def driver(
    spec: Path, store: Path, log: Path, program: tuple[Any, ...] = RUN, **env: str
) -> Iterator[Driver]:
    """A driver that, whatever the test does, leaves no process behind."""
    running = Driver(spec, store, log, program, **env)
    try:
        yield running
    finally:
        # A process that reused a number of ours would have a parent that is none of ours.
        running.look()
        if running.process.poll() is None:
            kill(running.pid)
            running.process.wait()
        kill(*(p for p in running.seen if is_alive(p) and "ray" in title(p)))
        running.out.close()
