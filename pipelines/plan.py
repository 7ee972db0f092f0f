"""What a spec's nodes mean for a store: their fingerprints, and why each must run or need not.

Pure but for reading the store's manifests and listings, so it can be printed and tested
without Ray.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pipelines.data.cost import gigabytes
from pipelines.nodes import SINGLE, Node, interval_of, nodes_of
from pipelines.spec import Spec
from pipelines.store.artifacts import Store
from pipelines.store.dataset import FILE, Version

__all__ = ["SINGLE", "Node", "Plan", "Verdict", "interval_of", "make", "nodes_of", "ways_to_end"]

# The version of each kind's result; raising one makes every node of the kind run again.
FORMATS = {"data": 1, "encoders": 2, "embed": 3, "train": 3, "evaluate": 3, "promote": 2}

SHOWN = 40  # characters of a setting's value in a reason


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A node, its fingerprint and whether its result is already in the store."""

    node: Node
    fingerprint: str
    manifest: Mapping[str, Any] | None
    """Of the finished node; None if it must run."""

    why: str

    @property
    def cached(self) -> bool:
        return self.manifest is not None

    @property
    def folder(self) -> str:
        return folder_of(self.node, self.fingerprint)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Nodes in an order in which each comes after what it needs."""

    spec: Spec
    verdicts: dict[str, Verdict]

    @property
    def fingerprint(self) -> str:
        """Of the whole: the same nodes with the same fingerprints are the same execution."""
        return digest({i: v.fingerprint for i, v in self.verdicts.items()})


def images_to_train(plan: Plan, node: Node) -> int | None:
    """Images a training node adds; one that continues its parent does not repeat the parent's."""
    if node.kind != "train":
        return None
    images: int = node.settings["images"]
    if node.settings["start"] == "continue":
        images -= plan.verdicts[node.inputs["parent"]].node.settings["images"]
    return images


def ways_to_end(plan: Plan) -> dict[str, float]:
    """Images from the start of each node to the end of the longest way behind it.

    A run starts what is ready in the order of these, the longest first.
    """
    ways: dict[str, float] = {}
    for verdict in reversed(plan.verdicts.values()):
        node = verdict.node
        behind = [ways[v.node.id] for v in plan.verdicts.values() if node.id in v.node.needs]
        ways[node.id] = float(node.settings.get("images", 1)) + max(behind, default=0)
    return ways


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def folder_of(node: Node, fingerprint: str) -> str:
    return f"nodes/{node.id}-{fingerprint}"


def make(spec: Spec, store: Store, sources: Mapping[str, Any]) -> Plan:
    """Works out every node's fingerprint and what the store already has of it."""
    verdicts: dict[str, Verdict] = {}
    files = cache(store.files)  # versions share their pools
    for node in nodes_of(spec, sources):
        fingerprint = digest(
            {
                "kind": node.kind,
                "format": FORMATS[node.kind],
                "settings": node.settings,
                "inputs": {role: verdicts[i].fingerprint for role, i in node.inputs.items()},
            }
        )
        folder = folder_of(node, fingerprint)
        manifest = store.manifest(folder)
        lost = _lost_shards(store, folder, manifest, files) if manifest else ""
        if lost:
            manifest, why = None, lost
        elif manifest:
            why = f"done before: settings and inputs unchanged ({fingerprint[:8]})"
        else:
            why = _why_not(node, fingerprint, store, verdicts)
        verdicts[node.id] = Verdict(node=node, fingerprint=fingerprint, manifest=manifest, why=why)
    return Plan(spec=spec, verdicts=verdicts)


def _lost_shards(
    store: Store,
    folder: str,
    manifest: Mapping[str, Any],
    files: Callable[[str], Mapping[str, int]],
) -> str:
    """In words, what a version lists that is not in the pool any more; nothing if all is well."""
    if FILE not in manifest["files"]:
        return ""
    try:
        version = Version.open(store, folder)
    except ValueError:
        return "its list of shards is damaged"
    lost = len(version.missing(files))
    return f"{lost} of {len(version)} shards {'is' if lost == 1 else 'are'} lost" if lost else ""


def _why_not(node: Node, fingerprint: str, store: Store, verdicts: Mapping[str, Verdict]) -> str:
    """In words, why a node must run: begun before, something changed, or never done."""
    begun: dict[str, Any] | None = store.read_json(f"{folder_of(node, fingerprint)}/progress.json")
    if begun:
        return f"begun before: {begun['done']:,} of {begun['of']:,} {begun['unit']} are safe"
    before: dict[str, Any] | None = store.read_json(f"nodes/{node.id}.latest.json")
    if before is None:
        return "never done here"
    was, now = before["settings"], json.loads(json.dumps(node.settings))
    changed = data_changed(was.pop("source", None), now.pop("source", None))
    changed += difference(was, now)
    old = {role: i["fingerprint"] for role, i in before["inputs"].items()}
    changed += [
        f"input {i} changed"
        for role, i in node.inputs.items()
        if old.get(role) != verdicts[i].fingerprint
    ]
    if not changed:
        return (
            "format of its result changed" if before["fingerprint"] != fingerprint else "files lost"
        )
    return "; ".join(changed[:2]) + (f" and {len(changed) - 2} more" if len(changed) > 2 else "")


def data_changed(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> list[str]:
    """In words, that a user's data set is another; nothing if it is the same."""
    if not old or not new or old == new:
        return difference(old, new, "source")
    sizes = [f"{d['shards']:,} shards, {gigabytes(d['bytes'])}" for d in (old, new)]
    return ["its data changed" + (f" ({sizes[0]} → {sizes[1]})" if sizes[0] != sizes[1] else "")]


def difference(old: Any, new: Any, at: str = "") -> list[str]:
    """Every leaf that differs, as ``key: old → new``."""
    if isinstance(old, dict) and isinstance(new, dict):
        out: list[str] = []
        for key in sorted({*old, *new}):
            out += difference(old.get(key), new.get(key), f"{at}.{key}" if at else str(key))
        return out
    return [] if old == new else [f"{at}: {short(old)} → {short(new)}"]


def short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
