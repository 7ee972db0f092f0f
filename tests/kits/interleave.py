"""Explores all interleavings of a few processes that use one bucket, by running the real code.

Each process is a greenlet, which is paused before every request to the bucket. A schedule says
whose request comes next. All schedules are tried, depth first, each by running the processes again
from the start. Of two orders of independent requests one is tried (sleep sets, Godefroid 1996), and
a state that was seen before is not explored again; no state is left out by that. A process that is
paused for ever is one that gets no turn any more, so what is checked after each request holds for
those too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import ClientError
from greenlet import greenlet

READS = {"get", "head", "list"}


class Bucket:
    """What fsspec's S3 file system does for a store, in memory, with its conditional writes."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.past: dict[str, tuple[bytes, ...]] = {}
        """Object → its contents so far, each once."""

        self.request: Callable[[str, str], None] = lambda what, path: None
        """Called before each request."""

    def put(self, key: str, data: bytes) -> None:
        self.objects[key] = bytes(data)
        before = self.past.get(key, ())
        self.past[key] = before if data in before else (*before, bytes(data))

    def tag(self, key: str) -> str:
        return f'"{hashlib.md5(self.objects[key]).hexdigest()}"'

    def _strip_protocol(self, path: str) -> str:
        return path.removeprefix("s3://").rstrip("/")

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, key = self._strip_protocol(path).partition("/")
        return bucket, key, None

    def _asked(self, what: str, path: str) -> str:
        key = self._strip_protocol(path)
        self.request(what, key)
        return key

    def _found(self, what: str, path: str) -> str:
        key = self._asked(what, path)
        if key not in self.objects:
            raise FileNotFoundError(path)
        return key

    def cat_file(self, path: str) -> bytes:
        return self.objects[self._found("get", path)]

    def info(self, path: str) -> dict[str, Any]:
        key = self._found("head", path)
        size = len(self.objects[key])
        return {"name": key, "type": "file", "size": size, "ETag": self.tag(key)}

    def find(self, path: str, detail: bool = False) -> Any:
        key = self._asked("list", path)
        found = {
            name: {"name": name, "type": "file", "size": len(data)}
            for name, data in self.objects.items()
            if name == key or name.startswith(f"{key}/")
        }
        return found if detail else sorted(found)

    def rm_file(self, path: str) -> None:
        self.objects.pop(self._asked("delete", path), None)

    def pipe_file(self, path: str, data: bytes, mode: str = "overwrite") -> None:
        key = self._asked("put", path)
        if mode == "create" and key in self.objects:
            raise FileExistsError(path)
        self.put(key, data)

    def call_s3(self, method: str, Bucket: str, Key: str, Body: bytes, IfMatch: str) -> None:
        assert method == "put_object"
        key = self._asked("put", f"{Bucket}/{Key}")
        if key not in self.objects or self.tag(key) != IfMatch:
            status = {"ResponseMetadata": {"HTTPStatusCode": 412}}
            raise OSError("PreconditionFailed") from ClientError(status, "PutObject")
        self.put(key, Body)


@dataclass
class Process:
    """A process under exploration."""

    name: str
    run: greenlet
    seen: Any = field(default_factory=hashlib.sha256)
    """All that it has asked for so far and was answered, which determines what it does next."""

    waiting_for: tuple[str, str] = ("", "")
    """Its next request."""

    @property
    def is_over(self) -> bool:
        return self.run.dead


class World:
    """One run of all processes, under a schedule."""

    def __init__(self, bucket: Bucket, bodies: dict[str, Callable[[], None]]) -> None:
        self.bucket = bucket
        self.processes = [Process(name, greenlet(body)) for name, body in bodies.items()]
        bucket.request = self._pause
        for process in self.processes:
            process.run.switch()  # up to its first request

    def _pause(self, what: str, path: str) -> None:
        current = greenlet.getcurrent()
        [me] = [p for p in self.processes if p.run is current] or [None]
        if me is not None:
            me.waiting_for = (what, path)
            me.run.parent.switch()
            found = self.bucket.objects
            answer = sorted(k for k in found if k.startswith(path)) if what == "list" else ()
            me.seen.update(repr((what, path, found.get(path), answer)).encode())

    def step(self, choice: int) -> str:
        """Let a process make its next request and go on to the one after; → the request."""
        process = self.processes[choice]
        told = f"{process.name}: {' '.join(process.waiting_for)}"
        process.run.switch()
        return told

    def choices(self) -> list[int]:
        """Processes that have a request to make."""
        return [i for i, p in enumerate(self.processes) if not p.is_over]

    def key(self) -> tuple[object, ...]:
        """The same for two states from which the same follows."""
        processes = tuple((p.seen.digest(), p.waiting_for, p.is_over) for p in self.processes)
        past = tuple(sorted(self.bucket.past.items()))
        return hash(processes), hash(past), hash(frozenset(self.bucket.objects.items()))

    def independent(self, one: int, other: int) -> bool:
        """Whether the next requests of two processes lead to the same state in either order."""
        (a, at), (b, there) = (self.processes[i].waiting_for for i in (one, other))
        overlap = at == there or any(
            what == "list" and path.startswith(f"{folder}/")
            for what, folder, path in ((a, at, there), (b, there, at))
        )
        return not overlap or {a, b} <= READS

    def close(self) -> None:
        """End what has not ended."""
        self.bucket.request = lambda what, path: None
        for process in self.processes:
            if not process.is_over:
                process.run.throw()


class Found(AssertionError):
    """An invariant does not hold; the message has the requests that led there."""


def explore(begin: Callable[[], tuple[World, Callable[[], str | None]]]) -> tuple[int, int]:
    """Try all schedules.

    Args:
        begin: makes a fresh world, and a function that says what is wrong in it now, or None.

    Returns:
        Numbers of states and of runs.

    Raises:
        Found: Something is wrong; by the shortest schedule among those tried first.
    """
    slept: dict[object, frozenset[int]] = {}
    """State → processes whose next request need not come next there."""

    todo: list[tuple[tuple[int, ...], frozenset[int]]] = [((), frozenset())]
    runs = 0
    while todo:
        (path, sleep), runs = todo.pop(), runs + 1
        world, wrong = begin()
        told: list[str] = []
        for choice in path:
            told.append(world.step(choice))
        while True:
            if why := wrong():
                world.close()
                raise Found(f"{why}, after\n" + "\n".join(told))
            state = world.key()
            before = slept.get(state)
            left = set(world.choices()) - sleep if before is None else before - sleep
            slept[state] = sleep if before is None else before & sleep
            if not left:
                break
            first, *others = sorted(left)
            tried = sleep | {first}
            for other in others:
                rest = frozenset(s for s in tried if world.independent(s, other))
                todo.append(((*path, other), rest))
                tried |= {other}
            sleep = frozenset(s for s in sleep if world.independent(s, first))
            path = (*path, first)
            told.append(world.step(first))
        world.close()
    return len(slept), runs
