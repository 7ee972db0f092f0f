"""What a spec's nodes mean for a store: their fingerprints, and why each must run or need not.

Pure but for reading the store's manifests and listings, so it can be printed and tested
without Ray.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from pipelines.dag.champion import Champion
from pipelines.dag.differences import difference
from pipelines.dag.evaluation import comparison
from pipelines.dag.growth import Tree, grow
from pipelines.dag.nodes import SINGLE, Given, Node, dag_of, interval_of, nodes_of
from pipelines.dag.retraining import again_nodes
from pipelines.formatting import byte_size
from pipelines.spec.pipeline import Spec
from pipelines.store.artifacts import Store
from pipelines.store.dataset import FILE, Version

__all__ = [
    "SINGLE",
    "Given",
    "Node",
    "Plan",
    "Verdict",
    "interval_of",
    "make",
    "nodes_of",
    "ways_to_end",
]

# The version of each kind's result; raising one makes every node of the kind run again.
FORMATS = {
    "data": 3,
    "encoders": 3,
    "metric": 1,
    "embed": 3,
    "train": 4,
    "adopt": 1,
    "evaluate": 6,
    "compare": 2,
    "promote": 3,
    "gate": 2,
}


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
    """With the experts that adaptive trees have by now."""

    verdicts: dict[str, Verdict]
    fingerprint: str
    """Of the whole: what is the same execution. It stays while a tree grows."""

    trees: Mapping[str, Tree]
    """Stage → its tree, of those that grow."""

    champion: Champion | None
    """The ensemble to be beaten."""

    again: Callable[[], Plan]
    """The plan anew: as far as it has grown by what the store now holds."""

    @property
    def is_growing(self) -> bool:
        return any(not tree.is_grown for tree in self.trees.values())

    def news(self, before: Plan) -> list[str]:
        """In words, what has been decided on experts since."""
        return [
            f"{stage} grows: {d.expert} {d.gained}; {d.then}"
            for stage, tree in self.trees.items()
            for d in tree.decisions[len(before.trees[stage].decisions) :]
        ]


def images_to_train(plan: Plan, node: Node) -> int | None:
    """Images a training node adds; one that continues its parent does not repeat the parent's."""
    if node.kind != "train":
        return None
    images: int = node.settings["images"]
    if node.settings["start"] == "continue":
        images -= plan.verdicts[node.inputs["parent"]].node.settings["images"]
    return images


def may_grow(plan: Plan) -> dict[str, int]:
    """Stage → images that experts may train on who are not decided on yet."""
    left = {
        name: (plan.spec.stages[name].adaptive, tree.spent)
        for name, tree in plan.trees.items()
        if not tree.is_grown
    }
    return {name: settings.budget - spent for name, (settings, spent) in left.items() if settings}


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


def make(
    spec: Spec,
    store: Store,
    sources: Mapping[str, Any],
    *,
    champion: Champion | None = None,
    warm: bool = False,
) -> Plan:
    """Works out every node's fingerprint and what the store already has of it.

    An adaptive tree is grown by what the store has of its experts, until one must be trained.

    Args:
        champion: the ensemble that a new one has to beat.
        warm: retrain the champion's experts with new data, instead of training the spec's trees.
    """
    known = _Known(store)
    nodes_now = partial(again_nodes, champion=champion) if warm and champion else dag_of
    trees = {name: Tree(experts=()) for name, stage in spec.stages.items() if stage.adaptive}
    first: str | None = None
    while True:
        grown = as_grown(spec, trees)
        nodes, cascade = nodes_now(grown, sources)
        verdicts = known.verdicts(nodes)
        first = first or _identity(spec, verdicts)
        known_by = {i: v.fingerprint for i, v in verdicts.items()}
        more = comparison(grown, sources, cascade, champion, known_by)
        verdicts = known.verdicts(more, verdicts)
        found = {name: _grown(grown, name, verdicts) for name in trees}
        if found == trees or warm:
            return Plan(
                spec=grown,
                verdicts=verdicts,
                fingerprint=first,
                trees={} if warm else trees,
                champion=champion,
                again=lambda: make(spec, store, sources, champion=champion, warm=warm),
            )
        trees = found


def _identity(spec: Spec, verdicts: Mapping[str, Verdict]) -> str:
    fingerprints = {i: v.fingerprint for i, v in verdicts.items()}
    grows = {n: s.adaptive.settings() for n, s in spec.stages.items() if s.adaptive}
    return digest([fingerprints, grows] if grows else fingerprints)


def as_grown(spec: Spec, trees: Mapping[str, Tree]) -> Spec:
    """The spec with the experts that its adaptive trees have."""
    stages = dict(spec.stages)
    for name, tree in trees.items():
        stage = stages[name]
        experts = {**stage.experts, **dict.fromkeys(tree.experts, stage.grown)}
        stages[name] = stage.model_copy(
            update={"experts": experts, "ensemble": list(tree.ensemble)}
        )
    return spec.model_copy(update={"stages": stages})


def _grown(spec: Spec, stage: str, verdicts: Mapping[str, Verdict]) -> Tree:
    settings = spec.stages[stage].adaptive
    assert settings is not None
    found = {}
    for name in spec.stages[stage].experts:
        verdict = verdicts[f"train/{stage}/{name}"]
        if verdict.manifest and "val_gain" in verdict.manifest["metrics"]:
            found[name] = verdict.manifest["metrics"]
    return grow(settings, found, spec.stages[stage].noise)


class _Known:
    """What the store has; looked up once, however often a plan is made of it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.files = cache(store.files)  # versions share their pools
        self.found: dict[str, Verdict] = {}

    def verdicts(
        self, nodes: list[Node], above: Mapping[str, Verdict] | None = None
    ) -> dict[str, Verdict]:
        """Those of nodes, behind the verdicts of what they may need."""
        made = dict(above or {})
        for node in nodes:
            fingerprint = digest(
                {
                    "kind": node.kind,
                    "format": FORMATS[node.kind],
                    "settings": node.settings,
                    "inputs": {role: made[i].fingerprint for role, i in node.inputs.items()}
                    | {role: given.fingerprint for role, given in node.given.items()},
                }
            )
            folder = folder_of(node, fingerprint)
            if folder not in self.found:
                self.found[folder] = self._look(node, fingerprint, folder, made)
            made[node.id] = replace(self.found[folder], node=node)
        return made

    def _look(
        self, node: Node, fingerprint: str, folder: str, made: Mapping[str, Verdict]
    ) -> Verdict:
        manifest = self.store.manifest(folder)
        lost = _lost_shards(self.store, folder, manifest, self.files) if manifest else ""
        if lost:
            manifest, why = None, lost
        elif manifest:
            why = f"done before: settings and inputs unchanged ({fingerprint[:8]})"
        else:
            why = _why_not(node, fingerprint, self.store, made)
        return Verdict(node=node, fingerprint=fingerprint, manifest=manifest, why=why)


def made_meanwhile(store: Store, verdict: Verdict) -> Mapping[str, Any] | None:
    """The manifest of a node that was to be run and that another pipeline has done since."""
    manifest = store.manifest(verdict.folder)
    if manifest is None or _lost_shards(store, verdict.folder, manifest, cache(store.files)):
        return None
    return manifest


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
    read = {role: (i, verdicts[i].fingerprint) for role, i in node.inputs.items()}
    read |= {role: (role, given.fingerprint) for role, given in node.given.items()}
    changed += [
        f"input {i} changed" for role, (i, is_now) in read.items() if old.get(role) != is_now
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
    sizes = [f"{d['shards']:,} shards, {byte_size(d['bytes'])}" for d in (old, new)]
    return ["its data changed" + (f" ({sizes[0]} → {sizes[1]})" if sizes[0] != sizes[1] else "")]
