"""Model registry: the candidate and the champion of every model, and their history.

The candidate is the newest ensemble, the champion the one to generate with. The store holds them in
``registry/<model>.json``; MLflow's aliases are a copy.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pipelines.spec.names import check_name, is_name
from pipelines.store.artifacts import Store

MANIFEST = "ensemble.json"
"""File that a promote node writes into its folder."""

SHORT_LENGTH = 8
"""Characters of a fingerprint that are displayed."""

MIN_PREFIX = 4
"""Least characters of a fingerprint that identify it; a shorter number is a version."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An event in the history of a model: an ensemble was added, promoted or restored."""

    fingerprint: str
    folder: str
    """Folder of the ensemble's promote node in the store."""

    why: str
    """Reason, for people."""

    by: str
    """``run <id>``, ``promote`` or ``rollback``."""

    when: str = field(default_factory=_now)
    """UTC time in ISO format."""

    what: Literal["offered", "promoted", "rolled back to"] = "offered"
    """As stored: "offered" made it the candidate, the other two made it the champion."""

    numbers: Mapping[str, float] = field(default_factory=dict)
    """Measurements of the gate that decided."""

    @property
    def short(self) -> str:
        """The fingerprint as it is displayed."""
        return self.fingerprint[:SHORT_LENGTH]


@dataclass(frozen=True, kw_only=True)
class Registry:
    """The registry file of one model. ``history`` is append-only, oldest first."""

    candidate: Entry | None = None
    champion: Entry | None = None
    history: tuple[Entry, ...] = ()

    @property
    def versions(self) -> dict[str, Entry]:
        """Fingerprint → its first entry, oldest first: version 1, 2, …"""
        first: dict[str, Entry] = {}
        for entry in self.history:
            first.setdefault(entry.fingerprint, entry)
        return first

    def version(self, fingerprint: str) -> int:
        """Version number of an ensemble, from 1; ValueError for an unknown one."""
        return list(self.versions).index(fingerprint) + 1

    def aliases(self, fingerprint: str) -> list[str]:
        """Aliases of an ensemble: ``champion``, ``candidate``, both or neither."""
        held = {"champion": self.champion, "candidate": self.candidate}
        return [
            alias for alias, entry in held.items() if entry and entry.fingerprint == fingerprint
        ]

    def find(self, model: str, name: str) -> Entry:
        """Find an ensemble by alias, version, or prefix of its fingerprint.

        Args:
            model: name of the model, for the error message.
            name: ``champion``, ``candidate``, a version, or a prefix of at least 4 characters.

        Raises:
            ValueError: No ensemble, or more than one, has this name.
        """
        if name in ("champion", "candidate"):
            if entry := {"champion": self.champion, "candidate": self.candidate}[name]:
                return entry
            how = "`ediffi promote`" if name == "champion" and self.candidate else "`ediffi run`"
            raise ValueError(f"{model} has no {name} yet; {how} makes one")
        versions = self.versions
        if name.isdecimal() and len(name) < MIN_PREFIX:
            found = list(versions.values())[int(name) - 1 : int(name)] if int(name) else []
        else:
            found = [
                e for f, e in versions.items() if f.startswith(name) and len(name) >= MIN_PREFIX
            ]
        if len(found) == 1:
            return found[0]
        what = f"{len(found)} ensembles" if found else "no ensemble"
        raise ValueError(
            f"{model} has {what} {name!r}; give a version or {MIN_PREFIX} or more characters of a "
            f"fingerprint, as `ediffi models {model}` lists them"
        )


def registry_path(model: str) -> str:
    """Path of a model's registry file in the store; ValueError for a name that none can have."""
    check_name(model, "name of a model")
    return f"registry/{model}.json"


def models(store: Store) -> list[str]:
    """Names of the models that have a registry file."""
    found = [n.removesuffix(".json") for n in store.files("registry") if n.endswith(".json")]
    return [name for name in found if is_name(name)]


def read(store: Store, model: str) -> Registry:
    """Read a model's registry, empty without a file; ValueError for a file of another kind."""
    raw = store.read_json(registry_path(model))
    if raw is None:
        return Registry()
    try:
        return Registry(
            candidate=_entry(raw["candidate"]),
            champion=_entry(raw["champion"]),
            history=tuple(_parsed(e) for e in raw["history"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{store.full(registry_path(model))} is not a registry file ({error!r})"
        ) from error


def run_aliases(store: Store, model: str, nodes: Mapping[str, Any]) -> list[str]:
    """Current aliases of a run's ensemble: ``champion``, ``candidate``, both or neither.

    Args:
        nodes: the nodes of the run's record.
    """
    promoted = nodes.get(f"promote/{model}", {})
    if promoted.get("state") not in ("done", "reused"):
        return []
    fingerprint = promoted["folder"].rpartition("-")[2]
    return read(store, model).aliases(fingerprint)


def _entry(raw: dict[str, Any] | None) -> Entry | None:
    return _parsed(raw) if raw else None


def _parsed(raw: dict[str, Any]) -> Entry:
    """An entry as stored; version 0.1.0 wrote "crowned" for "promoted"."""
    return Entry(**{**raw, "what": "promoted" if raw["what"] == "crowned" else raw["what"]})


def add_candidate(store: Store, model: str, entry: Entry) -> Registry:
    """Make an ensemble the candidate; does nothing if it already is."""
    return _update(store, model, lambda registry: with_candidate(registry, entry))


def promote(
    store: Store,
    model: str,
    fingerprint: str,
    why: str,
    *,
    by: str = "promote",
    numbers: Mapping[str, float] | None = None,
) -> Registry:
    """Make a registered ensemble the champion; does nothing if it already is.

    A run (``by="run <id>"``) promotes an ensemble only once. After a rollback or another promotion,
    a rerun with everything cached does not undo that choice.

    Args:
        fingerprint: any name that :meth:`Registry.find` takes.
        numbers: measurements of the gate that decided.

    Raises:
        ValueError: The ensemble is unknown, or its files are no longer in the store.
    """

    def change(registry: Registry) -> Registry:
        known = _check_stored(store, registry.find(model, fingerprint))
        return with_champion(
            registry, replace(known, why=why, by=by, when=_now(), numbers=numbers or {})
        )

    return _update(store, model, change)


def roll_back(store: Store, model: str, why: str = "") -> Registry:
    """Make the previous champion the champion again; ValueError if there is none."""

    def change(registry: Registry) -> Registry:
        after = with_rollback(registry, model, why)
        _check_stored(store, succession(after.history)[-1])
        return after

    change(read(store, model))  # fail before a missing store is created
    return _update(store, model, change)


def _check_stored(store: Store, entry: Entry) -> Entry:
    if store.size(f"{entry.folder}/{MANIFEST}") is None:
        raise ValueError(
            f"ensemble {entry.short} is no longer in {store.root}; run its spec again, "
            "or promote another"
        )
    return entry


def with_candidate(registry: Registry, entry: Entry) -> Registry:
    """The registry after an ensemble became the candidate."""
    if registry.candidate and registry.candidate.fingerprint == entry.fingerprint:
        return registry
    entry = replace(entry, what="offered")
    return replace(registry, candidate=entry, history=(*registry.history, entry))


def with_champion(registry: Registry, entry: Entry) -> Registry:
    """The registry after a promotion; a run promotes an ensemble only once."""
    promoted = {e.fingerprint for e in registry.history if e.what == "promoted"}
    if registry.champion and registry.champion.fingerprint == entry.fingerprint:
        return registry
    if entry.by.startswith("run ") and entry.fingerprint in promoted:
        return registry
    entry = replace(entry, what="promoted")
    return replace(registry, champion=entry, history=(*registry.history, entry))


def with_rollback(registry: Registry, model: str, why: str) -> Registry:
    """The registry after a rollback; ValueError without a previous champion."""
    line = succession(registry.history)
    if len(line) < 2:
        has = f"only {line[0].short} was its champion" if line else "it has no champion"
        raise ValueError(f"{model} cannot be rolled back: {has}; see `ediffi models {model}`")
    why = why or f"instead of {line[-1].short}"
    back = replace(line[-2], what="rolled back to", why=why, by="rollback", when=_now())
    return replace(registry, champion=back, history=(*registry.history, back))


def succession(history: tuple[Entry, ...]) -> list[Entry]:
    """The champions in order, without those that were rolled back; the last is the current one."""
    line: list[Entry] = []
    for entry in history:
        if entry.what == "promoted":
            line.append(entry)
        elif entry.what == "rolled back to":
            line.pop()
    return line


def _update(store: Store, model: str, change: Callable[[Registry], Registry]) -> Registry:
    with _locked(store, model):
        before = read(store, model)
        after = change(before)
        if after is not before:
            store.write_json(registry_path(model), asdict(after))
    return after


@contextlib.contextmanager
def _locked(store: Store, model: str) -> Iterator[None]:
    """Lock a model's file against concurrent updates, such as a run and a person.

    Object stores have no lock: of two updates within a second, the later one wins.
    """
    if not store.is_local:
        yield
        return
    lock = Path(store.full(f"registry/.{model}.lock"))
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
