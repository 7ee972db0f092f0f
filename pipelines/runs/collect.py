"""Garbage collection: remove the results that no champion, candidate or run needs.

It is safe beside running drivers. A collection has a lease of its own and takes it before it reads
what runs need; a driver records what it needs before it looks for a collection. So at least one of
the two sees the other: the collection keeps what the driver needs, or the driver waits for its end
and then checks that nothing is gone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from pipelines.data.shard_pool import FOLDER as SHARDS
from pipelines.data.shard_pool import prefetch
from pipelines.formatting import byte_size
from pipelines.models import champions
from pipelines.runs import claims
from pipelines.runs.lease import Lease, LeaseLost, is_driven, only_driver
from pipelines.runs.needed import (
    NODE,
    RECORD,
    Needed,
    Policy,
    find_needed,
    needed_shards,
    versions_of,
)
from pipelines.store.artifacts import MANIFEST, Store

LEASE = ".gc"
"""In place of a pipeline's name, which cannot begin with a dot."""

BATCH = 500
"""Files or folders that are removed between two checks of the lease."""

KINDS = ("nodes", "shards", "runs", "claims")
"""What is collected, in the order in which it is removed."""


@dataclass(frozen=True, kw_only=True)
class Amount:
    """Number of things of a kind, and their size."""

    count: int = 0
    files: int = 0
    bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """What a collection removes, and what it keeps."""

    removed: Mapping[str, Mapping[str, int]]
    """Kind → thing → its bytes. A node is its folder, a shard its path without the ending, a run
    its id, and a claim its path."""

    files: Mapping[str, list[str]]
    """Thing → paths of its files."""

    kept: Mapping[str, Amount]
    """Kind → what stays."""

    notes: tuple[str, ...] = ()
    """Why something stays that nobody seems to need, a sentence each."""

    def amount(self, kind: str) -> Amount:
        """What is removed of a kind."""
        things = self.removed[kind]
        files = sum(len(self.files[thing]) for thing in things)
        return Amount(count=len(things), files=files, bytes=sum(things.values()))


def find_garbage(store: Store, policy: Policy) -> Garbage:
    """Find out what a collection would remove now; changes nothing.

    Raises:
        ValueError: A record that has to be read is damaged.
    """
    # Claims before nodes, and nodes before runs: what appears in between is not seen, so it stays.
    files: dict[str, int] = {}
    for folder in ("leases", "nodes", SHARDS, "executions"):
        files |= {f"{folder}/{path}": size for path, size in store.files(folder).items()}
    needed = find_needed(store, policy, files)
    things, notes = _grouped(files), list[str]()
    claimed = _claimed(store, {_node_of(c) for c in things["claims"]} - needed.nodes.keys())
    notes += [f"{node} stays: pipeline {pipeline} builds it" for node, pipeline in claimed.items()]
    nodes = needed.nodes.keys() | claimed.keys()
    stay: dict[str, Iterable[str]] = {
        "nodes": nodes,
        "shards": _shards_that_stay(store, needed, claimed, files, things["shards"], notes),
        "runs": needed.runs,
        "claims": [claim for claim in things["claims"] if _node_of(claim) in nodes],
    }
    removed: dict[str, dict[str, int]] = {}
    kept: dict[str, Amount] = {}
    for kind in KINDS:
        keep = set(stay[kind])
        sizes = {thing: sum(files[f] for f in of) for thing, of in things[kind].items()}
        removed[kind] = {thing: size for thing, size in sizes.items() if thing not in keep}
        left = {thing: size for thing, size in sizes.items() if thing in keep}
        kept[kind] = Amount(
            count=len(left),
            files=sum(len(things[kind][thing]) for thing in left),
            bytes=sum(left.values()),
        )
    of = {thing: things[kind][thing] for kind in KINDS for thing in removed[kind]}
    return Garbage(removed=removed, files=of, kept=kept, notes=tuple(notes))


def _grouped(files: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Kind → thing → its files; files of no kind are left out."""
    found: dict[str, dict[str, list[str]]] = {kind: {} for kind in KINDS}
    for path in files:
        folder = path.partition("/")[0]
        if folder == "nodes" and (match := NODE.fullmatch(path)):
            found["nodes"].setdefault(match[1], []).append(path)
        elif folder == SHARDS:
            found["shards"].setdefault(path.rpartition(".")[0], []).append(path)
        elif folder == "executions" and (run := _run_of(path)):
            found["runs"].setdefault(run, []).append(path)
        elif path.startswith("leases/nodes/"):
            found["claims"][path] = [path]
    return found


def _run_of(path: str) -> str:
    """Id of the run that a file below ``executions`` belongs to; empty for a pointer."""
    if path.count("/") > 1:  # a traceback
        return path.split("/")[1]
    match = RECORD.fullmatch(path)
    return match[1] if match and not path.endswith(".latest.json") else ""


def _node_of(claim: str) -> str:
    return claim.removeprefix("leases/").removesuffix(".json")


def _claimed(store: Store, nodes: Iterable[str]) -> dict[str, str]:
    """Those of the nodes that a live driver has claimed → its pipeline."""
    folders = sorted(nodes)
    owners = prefetch(folders, lambda folder: claims.live_owner(store, folder))
    return {f: owner for f, owner in zip(folders, owners, strict=True) if owner is not None}


def _shards_that_stay(
    store: Store,
    needed: Needed,
    claimed: Mapping[str, str],
    files: Mapping[str, int],
    there: Iterable[str],
    notes: list[str],
) -> Iterable[str]:
    embedding = [*needed.embedding, *(f for f in claimed if f.startswith("nodes/embed/"))]
    if embedding:
        notes.append(f"all shards stay: {embedding[0]} is not finished and may need them")
        return there
    return needed_shards(store, versions_of(needed.nodes, files))


def collect(store: Store, policy: Policy, log: Callable[[str], None] = lambda _: None) -> Garbage:
    """Remove what nobody needs.

    A node's manifest goes before its other files, and a shard's record before the shard, so that
    whatever a killed collection leaves counts as not made; the next collection removes it.

    Args:
        log: receives lines for the user.

    Returns:
        What was removed.

    Raises:
        ValueError: Another collection runs, or a record that has to be read is damaged.
        LeaseLost: This one could not renew its lease in time, so it stopped.
    """
    with _only_collection(store) as lease:
        found = find_garbage(store, policy)
        nodes, shards = found.removed["nodes"], found.removed["shards"]
        manifests = [f"{node}/{MANIFEST}" for node in nodes]
        _remove(lease, manifests, store.remove)
        _remove(lease, nodes, store.remove_folder)
        log(f"removed {len(nodes):,} nodes, {byte_size(found.amount('nodes').bytes)}")
        of_shards = [path for stem in shards for path in found.files[stem]]
        records = [path for path in of_shards if path.endswith(".json")]
        _remove(lease, records, store.remove)
        _remove(lease, [p for p in of_shards if not p.endswith(".json")], store.remove)
        log(f"removed {len(shards):,} shards, {byte_size(found.amount('shards').bytes)}")
        for kind in ("runs", "claims"):
            rest = [path for thing in found.removed[kind] for path in found.files[thing]]
            _remove(lease, rest, store.remove)
        return found


@contextlib.contextmanager
def _only_collection(store: Store) -> Iterator[Lease]:
    with contextlib.ExitStack() as stack:
        try:
            lease = stack.enter_context(only_driver(store, LEASE))
        except ValueError:
            raise ValueError(
                f"another `ediffi gc` collects in {store.root}; wait for its end"
            ) from None
        yield lease


def _remove(lease: Lease, things: Iterable[str], remove: Callable[[str], None]) -> None:
    todo = list(things)
    for at in range(0, len(todo), BATCH):
        if lease.is_overdue:
            # A driver may take this collection for ended, and rely on what is still there.
            raise LeaseLost("could not renew the lease in time, so nothing more is removed")
        for _ in prefetch(todo[at : at + BATCH], remove):
            pass


def is_collecting(store: Store) -> bool:
    """Whether a collection is removing results now."""
    return is_driven(store, LEASE)


def check_present(store: Store, nodes: Mapping[str, str]) -> None:
    """Check that finished nodes are still in the store.

    Args:
        nodes: id → folder.

    Raises:
        ValueError: A collection has removed one.
    """
    sizes = prefetch(nodes.values(), lambda folder: store.size(f"{folder}/{MANIFEST}"))
    lost = [node for node, size in zip(nodes, sizes, strict=True) if size is None]
    if lost:
        raise ValueError(
            f"`ediffi gc` removed the results of {', '.join(lost)} while this run began; run the "
            "same command again"
        )


def removed_versions(store: Store, garbage: Garbage) -> dict[str, list[str]]:
    """Model → fingerprints of its registered ensembles that were removed."""
    found: dict[str, list[str]] = {}
    for folder in garbage.removed["nodes"]:
        kind, _, name = folder.removeprefix("nodes/").partition("/")
        model, _, fingerprint = name.rpartition("-")
        if kind == "promote" and fingerprint in champions.read(store, model).versions:
            found.setdefault(model, []).append(fingerprint)
    return found
