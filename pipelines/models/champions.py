"""Which ensemble of a model to draw with: the candidate, offered last, and the champion.

``registry/<model>.json`` in the store says so, and all that ever happened; MLflow's aliases follow.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pipelines.store.artifacts import Store

MANIFEST = "ensemble.json"
"""What a promote node writes."""

SHORT = 8
"""Characters of a fingerprint that people are shown."""

LEAST = 4
"""Characters of a fingerprint that name it; fewer digits are a version."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An ensemble, and what happened to it."""

    fingerprint: str
    folder: str
    """Of its promote node, in the store."""

    why: str
    by: str
    """``run <id>``, ``promote`` or ``rollback``."""

    when: str = field(default_factory=_now)
    what: Literal["offered", "crowned", "rolled back to"] = "offered"
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What a gate measured."""

    @property
    def short(self) -> str:
        return self.fingerprint[:SHORT]


@dataclass(frozen=True, kw_only=True)
class Book:
    """All that is known of one model; ``history`` only ever grows."""

    candidate: Entry | None = None
    champion: Entry | None = None
    history: tuple[Entry, ...] = ()

    @property
    def offers(self) -> dict[str, Entry]:
        """Fingerprint → its first offer, the oldest first: version 1, 2, …"""
        first: dict[str, Entry] = {}
        for entry in self.history:
            first.setdefault(entry.fingerprint, entry)
        return first

    def version(self, fingerprint: str) -> int:
        return list(self.offers).index(fingerprint) + 1

    def marks(self, fingerprint: str) -> list[str]:
        """``champion``, ``candidate``, both or neither."""
        held = {"champion": self.champion, "candidate": self.candidate}
        return [
            alias for alias, entry in held.items() if entry and entry.fingerprint == fingerprint
        ]

    def find(self, model: str, name: str) -> Entry:
        """By alias, version, or the start of a fingerprint; ValueError if there is no such one."""
        if name in ("champion", "candidate"):
            if entry := {"champion": self.champion, "candidate": self.candidate}[name]:
                return entry
            how = "`ediffi promote`" if name == "champion" and self.candidate else "`ediffi run`"
            raise ValueError(f"{model} has no {name} yet; {how} makes one")
        offers = self.offers
        if name.isdecimal() and len(name) < LEAST:
            found = list(offers.values())[int(name) - 1 : int(name)] if int(name) else []
        else:
            found = [e for f, e in offers.items() if f.startswith(name) and len(name) >= LEAST]
        if len(found) == 1:
            return found[0]
        what = f"{len(found)} ensembles" if found else "no ensemble"
        raise ValueError(
            f"{model} has {what} {name!r}; give a version or {LEAST} or more characters of a "
            f"fingerprint, as `ediffi models {model}` lists them"
        )


def place(model: str) -> str:
    return f"registry/{model}.json"


def models(store: Store) -> list[str]:
    """The models that have a registry file."""
    return [n.removesuffix(".json") for n in store.files("registry") if n.endswith(".json")]


def read(store: Store, model: str) -> Book:
    """An empty book if nothing was ever offered."""
    raw = store.read_json(place(model))
    if raw is None:
        return Book()
    try:
        return Book(
            candidate=_entry(raw["candidate"]),
            champion=_entry(raw["champion"]),
            history=tuple(Entry(**e) for e in raw["history"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{store.full(place(model))} is no registry file ({error!r})") from error


def marks_of(store: Store, model: str, nodes: Mapping[str, Any]) -> list[str]:
    """What a run's ensemble is by now: ``champion``, ``candidate``, both or neither.

    Args:
        nodes: the run's record of its nodes.
    """
    promoted = nodes.get(f"promote/{model}", {})
    if promoted.get("state") not in ("done", "reused"):
        return []
    fingerprint = promoted["folder"].rpartition("-")[2]
    return read(store, model).marks(fingerprint)


def _entry(raw: dict[str, Any] | None) -> Entry | None:
    return Entry(**raw) if raw else None


def offer(store: Store, model: str, entry: Entry) -> Book:
    """Makes an ensemble the candidate; nothing changes if it is that already."""
    return _change(store, model, lambda book: offered(book, entry))


def crown(
    store: Store,
    model: str,
    fingerprint: str,
    why: str,
    *,
    by: str = "promote",
    numbers: Mapping[str, float] | None = None,
) -> Book:
    """Makes an ensemble that was offered the champion; nothing changes if it is that already.

    A run (``by="run <id>"``) crowns an ensemble once: should it be rolled back, or another be
    promoted, a rerun with everything cached does not undo that.
    """

    def change(book: Book) -> Book:
        known = _there(store, book.find(model, fingerprint))
        return crowned(book, replace(known, why=why, by=by, when=_now(), numbers=numbers or {}))

    return _change(store, model, change)


def roll_back(store: Store, model: str, why: str = "") -> Book:
    """Makes the champion before the champion; ValueError if there is none."""

    def change(book: Book) -> Book:
        after = rolled_back(book, model, why)
        _there(store, succession(after.history)[-1])
        return after

    change(read(store, model))  # refused before a store that is not there is begun
    return _change(store, model, change)


def _there(store: Store, entry: Entry) -> Entry:
    if store.size(f"{entry.folder}/{MANIFEST}") is None:
        raise ValueError(
            f"ensemble {entry.short} is no longer in {store.root}; run its spec again, "
            "or promote another"
        )
    return entry


def offered(book: Book, entry: Entry) -> Book:
    if book.candidate and book.candidate.fingerprint == entry.fingerprint:
        return book
    entry = replace(entry, what="offered")
    return replace(book, candidate=entry, history=(*book.history, entry))


def crowned(book: Book, entry: Entry) -> Book:
    past = {e.fingerprint for e in book.history if e.what == "crowned"}
    if book.champion and book.champion.fingerprint == entry.fingerprint:
        return book
    if entry.by.startswith("run ") and entry.fingerprint in past:
        return book
    entry = replace(entry, what="crowned")
    return replace(book, champion=entry, history=(*book.history, entry))


def rolled_back(book: Book, model: str, why: str) -> Book:
    line = succession(book.history)
    if len(line) < 2:
        has = f"only {line[0].short} was its champion" if line else "it has no champion"
        raise ValueError(f"{model} cannot be rolled back: {has}; see `ediffi models {model}`")
    why = why or f"instead of {line[-1].short}"
    back = replace(line[-2], what="rolled back to", why=why, by="rollback", when=_now())
    return replace(book, champion=back, history=(*book.history, back))


def succession(history: tuple[Entry, ...]) -> list[Entry]:
    """The champions that stand, the first one first: a rollback strikes out the last."""
    line: list[Entry] = []
    for entry in history:
        if entry.what == "crowned":
            line.append(entry)
        elif entry.what == "rolled back to":
            line.pop()
    return line


def _change(store: Store, model: str, change: Callable[[Book], Book]) -> Book:
    with _alone(store, model):
        before = read(store, model)
        after = change(before)
        if after is not before:
            store.write_json(place(model), asdict(after))
    return after


@contextlib.contextmanager
def _alone(store: Store, model: str) -> Iterator[None]:
    """Holds a model's file, so that a run that ends and a person lose no word of each other.

    A bucket has no lock: there the later of two that come within a second of each other stands.
    """
    if not store.is_local:
        yield
        return
    lock = Path(store.full(f"registry/.{model}.lock"))
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
