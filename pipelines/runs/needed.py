"""What must stay in a store: the nodes that champions, candidates and runs need, and their shards.

A node needs the nodes that it was made from, as its manifest names them, so the ancestors of a
champion stay with it: the experts that it was trained from, its data and its encoders.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipelines.data.shard_pool import prefetch, shard_path
from pipelines.models import champions
from pipelines.models.champions import succession
from pipelines.models.manifest import folders
from pipelines.runs.execution import UNFINISHED, Execution, nodes_of
from pipelines.store.artifacts import MANIFEST, Store
from pipelines.store.dataset import FILE, Version

NODE = re.compile(r"(nodes/.+?-[0-9a-f]{16})/(.+)")
"""Path of a file in a node's folder: the folder, and the file in it."""

RECORD = re.compile(r"executions/([^/]+?)(\.tree|\.cancel)?\.json")
"""Path of a run's record, of its tree, or of a request to cancel it: the run's id, and which."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What to keep besides what is always needed."""

    champions: int = 2
    """Previous champions of each model that ``ediffi rollback`` can return to."""

    runs: int = 1
    """Last runs of each pipeline whose results and records are kept."""

    def __post_init__(self) -> None:
        if self.champions < 0 or self.runs < 1:
            raise ValueError(
                f"--keep {self.champions} --runs {self.runs} would keep less than is needed to go "
                "on; write --keep 0 or more and --runs 1 or more"
            )


@dataclass(frozen=True, kw_only=True)
class Needed:
    """What must stay."""

    nodes: Mapping[str, str]
    """Folder of a node → who needs it, in words."""

    runs: frozenset[str]
    """Ids of the runs whose records stay."""

    embedding: tuple[str, ...]
    """Folders of needed embed nodes that are not finished: which shards they need is unknown."""


def find_needed(store: Store, policy: Policy, files: Mapping[str, int]) -> Needed:
    """Find out what must stay in a store.

    Args:
        files: path → bytes, of all files of the store below ``nodes`` and ``executions``.

    Raises:
        ValueError: A record that has to be read is damaged.
    """
    roots: dict[str, str] = {}
    runs: set[str] = set()
    for model in champions.models(store):
        book = champions.read(store, model)
        line = succession(book.history)[::-1][: 1 + policy.champions]
        kept = [("champion", book.champion), ("candidate", book.candidate)]
        kept += [("previous champion", entry) for entry in line]
        for what, entry in kept:
            if entry is not None:
                roots.setdefault(entry.folder, f"{what} of {model}")
                of = [e.by for e in book.history if e.fingerprint == entry.fingerprint]
                runs |= {by.removeprefix("run ") for by in of if by.startswith("run ")}
    for run in _kept_runs(store, policy, files):
        runs.add(run.id)
        for node in run.nodes.values():
            for folder in (node["folder"], *node.get("reads", ())):
                roots.setdefault(folder, f"run {run.id}")
    nodes = _with_ancestors(store, roots, files)
    embedding = [
        folder
        for folder in nodes
        if folder.startswith("nodes/embed/") and f"{folder}/{MANIFEST}" not in files
    ]
    return Needed(nodes=nodes, runs=frozenset(runs), embedding=tuple(embedding))


def _kept_runs(store: Store, policy: Policy, files: Mapping[str, int]) -> Iterator[Execution]:
    """The last runs of each pipeline, and all that are not finished."""
    of: dict[str, list[Execution]] = {}
    paths = [p for p in files if (m := RECORD.fullmatch(p)) and not m[2]]
    paths = [p for p in paths if not p.endswith(".latest.json")]
    for record in prefetch(paths, store.read_json):
        if record is not None:
            of.setdefault(record["pipeline"], []).append(Execution(**record))
    for runs in of.values():
        last = sorted(runs, key=lambda run: (run.started, run.id))[-policy.runs :]
        for run in {run.id: run for run in runs if run in last or run.state in UNFINISHED}.values():
            run.nodes = nodes_of(store, vars(run))
            yield run


def _with_ancestors(
    store: Store, roots: Mapping[str, str], files: Mapping[str, int]
) -> dict[str, str]:
    """Nodes and all that they were made from → who needs them."""
    found, level = dict(roots), list(roots)
    while level:
        above: list[str] = []
        read = prefetch(level, partial(_made_from, store, files))
        for folder, parents in zip(level, read, strict=True):
            new = [parent for parent in dict.fromkeys(parents) if parent not in found]
            found |= dict.fromkeys(new, found[folder])
            above += new
        level = above
    return found


def _made_from(store: Store, files: Mapping[str, int], folder: str) -> list[str]:
    """Folders of the nodes that a node was made from, and of those that an ensemble draws with."""
    found: list[str] = []
    if f"{folder}/{MANIFEST}" in files and (manifest := store.read_json(f"{folder}/{MANIFEST}")):
        inputs = manifest.get("inputs", {}).values()
        found += [f"nodes/{made['node']}-{made['fingerprint']}" for made in inputs]
    path = f"{folder}/{champions.MANIFEST}"
    if path in files and (ensemble := store.read_json(path)):
        found += _drawn_with(ensemble)
    return found


def _drawn_with(ensemble: Mapping[str, Any]) -> Iterator[str]:
    for weights in ensemble.get("weights", {}).values():
        if match := NODE.match(weights["path"]):
            yield match[1]
    yield from folders(ensemble)


def needed_shards(store: Store, folders: Iterable[str]) -> set[str]:
    """Stems, which are paths without the ending, of all files of the shards of data set versions.

    Args:
        folders: of finished embed nodes.

    Raises:
        ValueError: A version cannot be read.
    """
    found: set[str] = set()
    for folder in folders:
        table = Version.open(store, folder).table
        columns = (table[name].to_pylist() for name in ("path", "name", "source_identity"))
        for path, name, identity in zip(*columns, strict=True):
            found.add(path.removesuffix(".parquet"))
            # The record of a shard that lacked pictures has the shard's first name.
            found.add(shard_path(path.rpartition("/")[0], name, identity or "", "")[:-1])
        stats = store.read_json(f"{folder}/stats.json") or {}
        found |= {record.removesuffix(".json") for record in stats.get("empty", ())}
    return found


def versions_of(nodes: Iterable[str], files: Mapping[str, int]) -> list[str]:
    """Those of the nodes that are data set versions."""
    return [folder for folder in nodes if f"{folder}/{FILE}" in files]
