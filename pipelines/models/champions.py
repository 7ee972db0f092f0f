"""Model registry: the candidate and the champion of every model, and their history.

The candidate is the newest ensemble, the champion the one to generate with. The store holds them in
``registry/<model>.json``; MLflow's aliases are a copy.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from pipelines.models import signing
from pipelines.models.signing import Seal
from pipelines.spec.names import check_name, is_name
from pipelines.store.artifacts import MANIFEST as NODE_MANIFEST
from pipelines.store.artifacts import Store, sha256
from pipelines.store.compare_and_swap import compare_and_swap, read_snapshot
from pipelines.store.remote import StorageError

MANIFEST = "ensemble.json"
"""File that a promote node writes into its folder."""

SHORT_LENGTH = 8
"""Characters of a fingerprint that are displayed."""

MIN_PREFIX = 4
"""Least characters of a fingerprint that identify it; a shorter number is a version."""

ANY = "any"
"""In place of a fingerprint: whichever ensemble is the champion, or none."""

ATTEMPTS = 50
"""How often a change is tried again because somebody else changed the registry at that moment."""


class ChampionChanged(ValueError):
    """The champion is another one than the one that a new ensemble was compared with."""


class NotSigned(ValueError):
    """An ensemble has no signature that counts, and one is needed."""


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
    seals: Mapping[str, Seal] = field(default_factory=dict)
    """Fingerprint → what its ``ensemble.json`` must be; ensembles of earlier releases have none."""

    @property
    def versions(self) -> dict[str, Entry]:
        """Fingerprint → its first entry, oldest first: version 1, 2, …"""
        first: dict[str, Entry] = {}
        for entry in self.history:
            first.setdefault(entry.fingerprint, entry)
        return first

    @property
    def promoted(self) -> set[str]:
        """Fingerprints of the ensembles that were ever promoted."""
        return {e.fingerprint for e in self.history if e.what == "promoted"}

    def version(self, fingerprint: str) -> int:
        """Version number of an ensemble, from 1; ValueError for an unknown one."""
        return list(self.versions).index(fingerprint) + 1

    def aliases(self, fingerprint: str) -> list[str]:
        """Aliases of an ensemble: ``champion``, ``candidate``, both or neither."""
        held = {"champion": self.champion, "candidate": self.candidate}
        return [
            alias for alias, entry in held.items() if entry and entry.fingerprint == fingerprint
        ]

    def signers(self, model: str, fingerprint: str) -> set[str]:
        """Public keys that have signed an ensemble, in base64."""
        seal = self.seals.get(fingerprint)
        return seal.signers(model) if seal else set()

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
    return _registry(store, model, store.read(registry_path(model)))


def _registry(store: Store, model: str, data: bytes | None) -> Registry:
    if data is None:
        return Registry()
    try:
        raw = json.loads(data)
        return Registry(
            candidate=_entry(raw["candidate"]),
            champion=_entry(raw["champion"]),
            history=tuple(_parsed(e) for e in raw["history"]),
            seals={of: Seal(**seal) for of, seal in raw.get("seals", {}).items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
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


def add_candidate(store: Store, model: str, entry: Entry, anew: bool = False) -> Registry:
    """Make an ensemble the candidate, and seal what its node wrote; does nothing if it already is.

    Args:
        anew: whether its node has just been made. Then a seal of what it wrote earlier is replaced,
            and with it the signatures.
    """
    written = _written(store, entry.folder)

    def change(registry: Registry) -> Registry:
        after = with_candidate(registry, entry)
        seal = registry.seals.get(entry.fingerprint)
        if written is None or (seal and (not anew or seal.sha256 == written)):
            return after
        return _with_seal(after, entry.fingerprint, Seal(sha256=written))

    return _update(store, model, change)


def promote(
    store: Store,
    model: str,
    fingerprint: str,
    why: str,
    *,
    by: str = "promote",
    numbers: Mapping[str, float] | None = None,
    instead_of: str | None = ANY,
    dry_run: bool = False,
) -> Registry:
    """Make a registered ensemble the champion; does nothing if it already is.

    A run (``by="run <id>"``) promotes an ensemble only once. After a rollback or another promotion,
    a rerun with everything cached does not undo that choice.

    The promotion is signed if the environment has a key for that (:mod:`pipelines.models.signing`).

    Args:
        fingerprint: any name that :meth:`Registry.find` takes.
        numbers: measurements of the gate that decided.
        instead_of: fingerprint of the champion that it was compared with, or None if there was
            none; by default it takes the place of any.
        dry_run: return the registry as it would be, and write nothing.

    Raises:
        ChampionChanged: Another ensemble than ``instead_of`` is the champion now.
        NotSigned: It must be signed and cannot be: keys are trusted, and none of them has signed
            it; or a run without a key would replace a champion that is signed.
        ValueError: The ensemble is unknown, or its files are no longer in the store or altered.
    """

    def change(registry: Registry) -> Registry:
        _check_champion(registry, instead_of, fingerprint)
        known = _check_stored(store, registry, registry.find(model, fingerprint))
        after = with_champion(
            registry, replace(known, why=why, by=by, when=_now(), numbers=numbers or {})
        )
        chosen = after.champion and after.champion.fingerprint == known.fingerprint
        return _signed(store, model, registry, after) if chosen else after

    return change(read(store, model)) if dry_run else _update(store, model, change)


def roll_back(
    store: Store,
    model: str,
    why: str = "",
    *,
    instead_of: str | None = ANY,
    dry_run: bool = False,
) -> Registry:
    """Make the previous champion the champion again, with its signatures; signed as a promotion is.

    Args:
        instead_of: as of :func:`promote`.
        dry_run: likewise.

    Raises:
        NotSigned: As of :func:`promote`.
        ChampionChanged: Another ensemble than ``instead_of`` is the champion now.
        ValueError: There is no previous champion, or its files are gone from the store or altered.
    """

    def change(registry: Registry) -> Registry:
        _check_champion(registry, instead_of)
        after = with_rollback(registry, model, why)
        _check_stored(store, registry, succession(after.history)[-1])
        return _signed(store, model, registry, after)

    after = change(read(store, model))  # fail before a missing store is created
    return after if dry_run else _update(store, model, change)


def _check_champion(registry: Registry, instead_of: str | None, wanted: str | None = None) -> None:
    """Raise ChampionChanged if another ensemble than these two is the champion."""
    now = registry.champion.fingerprint if registry.champion else None
    if instead_of != ANY and now not in (instead_of, wanted):
        raise ChampionChanged(
            f"{now[:SHORT_LENGTH] if now else 'no ensemble'} is the champion now, and it was "
            f"compared with {instead_of[:SHORT_LENGTH] if instead_of else 'none'}"
        )


def _check_stored(store: Store, registry: Registry, entry: Entry) -> Entry:
    data = store.read(f"{entry.folder}/{MANIFEST}")
    if data is None:
        raise ValueError(
            f"ensemble {entry.short} is no longer in {store.root}; run its spec again, "
            "or promote another"
        )
    place = store.full(f"{entry.folder}/{MANIFEST}")
    _check_seal(registry, entry.fingerprint, data, place)
    if sha256(data) != _written(store, entry.folder):
        raise ValueError(f"{place} is not what its node wrote; restore it, or promote another")
    return entry


def _written(store: Store, folder: str) -> str | None:
    """sha256 of the ``ensemble.json`` that a node wrote; None if there is none."""
    node = store.read_json(f"{folder}/{NODE_MANIFEST}") or {}
    if listed := node.get("files", {}).get(MANIFEST):
        return str(listed["sha256"])
    data = store.read(f"{folder}/{MANIFEST}")
    return None if data is None else sha256(data)


def _with_seal(registry: Registry, fingerprint: str, seal: Seal) -> Registry:
    return replace(registry, seals={**registry.seals, fingerprint: seal})


def _check_seal(registry: Registry, fingerprint: str | None, data: bytes, place: str) -> None:
    seal = registry.seals.get(fingerprint or "")
    if seal and seal.sha256 != sha256(data):
        raise ValueError(
            f"{place} is not what was registered: its sha256 is {sha256(data):.12}…, the registry "
            f"of its model names {seal.sha256:.12}…; restore it, or remove its folder and run its "
            "pipeline again"
        )


def check(
    store: Store, model: str, data: bytes, place: str, fingerprint: str | None = None
) -> bool:
    """Compare an ``ensemble.json`` with its model's registry, and check its signature.

    Args:
        store: the store that has the registry.
        data: content of the file.
        place: where the file is, for messages.
        fingerprint: of the ensemble; None if unknown, as of a copy.

    Returns:
        Whether the registry knows its sha256; it does not for ensembles of earlier releases.

    Raises:
        ValueError: It is not what was registered.
        NotSigned: Keys are trusted (:data:`signing.TRUSTED_KEYS`), and none of them has signed it.
    """
    registry, trusted = read(store, model), signing.trusted_keys()
    _check_seal(registry, fingerprint, data, place)
    same = [seal for seal in registry.seals.values() if seal.sha256 == sha256(data)]
    if trusted is not None and not any(seal.signers(model) & trusted for seal in same):
        raise NotSigned(
            f"{place} is not signed by any key of {signing.TRUSTED_KEYS}; "
            f"`ediffi promote {model} WHICH` signs it where {signing.SIGNING_KEY} is set"
        )
    return bool(same)


def is_verified(store: Store, registry: Registry, entry: Entry) -> bool:
    """Whether an ensemble's file is the one that was registered; False if the hash is unknown."""
    data, seal = store.read(f"{entry.folder}/{MANIFEST}"), registry.seals.get(entry.fingerprint)
    return data is not None and seal is not None and seal.sha256 == sha256(data)


def _signed(store: Store, model: str, before: Registry, after: Registry) -> Registry:
    """The registry after a promotion with its signature, if there is a key."""
    entry, trusted, key = after.champion, signing.trusted_keys(), signing.signing_key()
    assert entry is not None
    seal = after.seals.get(entry.fingerprint)
    if seal is None and key and (written := _written(store, entry.folder)):
        seal = Seal(sha256=written)
    if seal and key:
        seal = seal.signed(model, key)
    signers = seal.signers(model) if seal else set()
    was = before.champion
    if trusted is not None and not signers & trusted:
        raise NotSigned(
            f"{entry.short} has no signature by a key of {signing.TRUSTED_KEYS}; set "
            f"{signing.SIGNING_KEY} to the private half of one of them"
        )
    drops = was and not signers and before.signers(model, was.fingerprint)
    if entry.by.startswith("run ") and drops:
        raise NotSigned(
            f"the champion is signed and {entry.short} is not; set {signing.SIGNING_KEY}"
        )
    if seal is None or seal == after.seals.get(entry.fingerprint):
        return after
    return _with_seal(after, entry.fingerprint, seal)


def with_candidate(registry: Registry, entry: Entry) -> Registry:
    """The registry after an ensemble became the candidate."""
    if registry.candidate and registry.candidate.fingerprint == entry.fingerprint:
        return registry
    entry = replace(entry, what="offered")
    return replace(registry, candidate=entry, history=(*registry.history, entry))


def with_champion(registry: Registry, entry: Entry) -> Registry:
    """The registry after a promotion; a run promotes an ensemble only once."""
    if registry.champion and registry.champion.fingerprint == entry.fingerprint:
        return registry
    if entry.by.startswith("run ") and entry.fingerprint in registry.promoted:
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
    """Apply a change to a model's registry; again on what is there if somebody else was faster."""
    path = registry_path(model)
    for attempt in range(ATTEMPTS):
        seen = read_snapshot(store, path)
        before = _registry(store, model, seen.data)
        after = change(before)
        if after is before:
            return after
        if compare_and_swap(store, path, seen, _serialised(after)):
            return after
        time.sleep(random.uniform(0, min(1.0, 0.02 * 2**attempt)))
    raise StorageError(
        f"{store.full(path)} was changed by others {ATTEMPTS} times in a row; try again"
    )


def _serialised(registry: Registry) -> bytes:
    return json.dumps(asdict(registry), indent=1, sort_keys=True).encode()
