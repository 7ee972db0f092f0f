"""Plan a pipeline: fingerprint its nodes, and decide which must run and why.

Nothing here runs a node. A plan only reads the store's manifests and listings, so it can be printed
and tested without Ray.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

from ediffi_core.tree import ROOT
from pipelines.dag.champion import Champion
from pipelines.dag.differences import difference, settings_count
from pipelines.dag.evaluation import champion_comparison_nodes
from pipelines.dag.growth import Tree, grow
from pipelines.dag.nodes import SINGLE, ExternalResult, Node, dag_of, interval_of, nodes_of
from pipelines.dag.retraining import retraining_nodes
from pipelines.formatting import byte_size
from pipelines.spec.pipeline import Spec
from pipelines.store.artifacts import Store
from pipelines.store.dataset import FILE, Version

__all__ = [
    "SINGLE",
    "ExternalResult",
    "Node",
    "Plan",
    "Verdict",
    "interval_of",
    "make",
    "nodes_of",
    "path_lengths",
]

# Format version of each kind's result; raising one makes every node of the kind run again.
FORMATS = {
    "data": 5,
    "encoders": 4,
    "metric": 1,
    "features": 1,
    "embed": 3,
    "train": 4,
    "adopt": 1,
    "evaluate": 6,
    "compare": 2,
    "promote": 3,
    "gate": 2,
    "difficulty": 1,
    "probe": 1,
    "merge": 1,
    "gradients": 1,
    "drift": 1,
    "drift_gate": 1,
}


NOT_BUILT = "not built yet with these settings"
"""Why a node must run whose latest result here is of other data or another pipeline."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A node of a plan: its fingerprint, and whether it must run."""

    node: Node
    fingerprint: str
    manifest: Mapping[str, Any] | None
    """Manifest of the stored result; None if the node must run."""

    why: str
    """Why the node must run or can be reused, in words."""

    @property
    def cached(self) -> bool:
        """Whether the result is in the store, so that the node is reused."""
        return self.manifest is not None

    @property
    def folder(self) -> str:
        """Folder of the result in the store."""
        return folder_of(self.node, self.fingerprint)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The nodes of a pipeline, and which of them must run."""

    spec: Spec
    """The spec, with the experts that its adaptive trees have grown so far, and with the boundaries
    that are measured."""

    verdicts: dict[str, Verdict]
    """Node id → verdict; every node comes after its dependencies."""

    fingerprint: str
    """Identifies the execution: a stopped run with the same fingerprint is continued. It does not
    change while a tree grows."""

    trees: Mapping[str, Tree]
    """Stage → its tree, for stages with ``adaptive:``."""

    champion: Champion | None
    """The ensemble that a new one is compared with."""

    regrow: Callable[[], Plan]
    """Make the plan again from what the store holds now, with the trees grown further."""

    sources: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What the plan was made from, as of :func:`pipelines.dag.nodes.dag_of`; empty if it was merged
    from several."""

    cells: Mapping[str, Plan] = field(default_factory=dict)
    """Name → plan, of the pipelines that :func:`pipelines.dag.merged.merge` has put together."""

    unplaced: Mapping[str, int] = field(default_factory=dict)
    """Stage whose boundaries are still to be measured → images of the experts that wait for them,
    which are not in the plan yet. Without those that an adaptive tree may grow."""

    @property
    def is_growing(self) -> bool:
        """Whether a tree will get more experts."""
        return bool(self.unplaced) or any(not tree.is_grown for tree in self.trees.values())

    def new_decisions(self, before: Plan) -> list[str]:
        """Describe the decisions on experts that an earlier version of the plan did not have."""
        if self.cells:
            return [
                f"{cell}: {line}"
                for cell, plan in self.cells.items()
                for line in plan.new_decisions(before.cells[cell])
            ]
        placed = [name for name in before.unplaced if name not in self.unplaced]
        halves = [(name, self.spec.stages[name].warp(0.5)) for name in placed]
        return [
            f"{stage} cuts p(σ) by difficulty: half of the root's loss is below quantile {half:g}"
            for stage, half in halves
        ] + [
            f"{stage} grows: {d.expert} {d.gained}; {d.then}"
            for stage, tree in self.trees.items()
            for d in tree.decisions[len(before.trees[stage].decisions) :]
        ]


def images_to_train(plan: Plan, node: Node) -> int | None:
    """Images that a train node trains on; None for other kinds.

    A node that continues its parent's training counts only the images after its parent's.
    """
    if node.kind != "train":
        return None
    images: int = node.settings["images"]
    if node.settings["start"] == "continue":
        images -= plan.verdicts[node.inputs["parent"]].node.settings["images"]
    return images


def growth_budget_left(plan: Plan) -> dict[str, int]:
    """Growing stage → images that experts added later may train on, at most."""
    budgets = {
        name: (plan.spec.stages[name].adaptive, tree.spent)
        for name, tree in plan.trees.items()
        if not tree.is_grown
    }
    left = {name: own.budget - spent for name, (own, spent) in budgets.items() if own}
    return left | {name: images for name, images in plan.unplaced.items() if images}


def path_lengths(plan: Plan) -> dict[str, float]:
    """Node id → length of the longest path from its start to the end of the plan.

    The unit is trained images; a node that trains none counts as 1. A run starts the ready nodes
    with the longest paths first, those on the critical path.
    """
    lengths: dict[str, float] = {}
    behind: dict[str, float] = {}
    for verdict in reversed(plan.verdicts.values()):
        node = verdict.node
        own = float(node.settings.get("images", 1)) + behind.get(node.id, 0.0)
        lengths[node.id] = own
        for needed in node.dependencies:
            behind[needed] = max(behind.get(needed, 0.0), own)
    return lengths


def dependents(plan: Plan) -> dict[str, list[str]]:
    """Node id → ids of the nodes that need it directly."""
    found: dict[str, list[str]] = {}
    for verdict in plan.verdicts.values():
        for needed in verdict.node.dependencies:
            found.setdefault(needed, []).append(verdict.node.id)
    return found


def digest(value: Any) -> str:
    """Fingerprint of any JSON-ready value, 16 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def folder_of(node: Node, fingerprint: str) -> str:
    """Folder of a node's result in the store."""
    return f"nodes/{node.path}-{fingerprint}"


def make(
    spec: Spec,
    store: Store,
    sources: Mapping[str, Any],
    *,
    champion: Champion | None = None,
    retrain: bool = False,
) -> Plan:
    """Plan a pipeline: fingerprint its nodes and look up which results the store already has.

    Adaptive trees are grown from the results in the store, until they need an expert that is not
    trained yet. Boundaries of equal difficulty are taken from there too; as long as they are not
    measured, only the root of their stage and ``single`` are planned.

    Args:
        sources: as of :func:`pipelines.dag.nodes.dag_of`.
        champion: the ensemble that the new one is compared with.
        retrain: continue training the champion's experts on new data, instead of training the
            spec's trees.

    Raises:
        ValueError: The spec cannot retrain the champion.
    """
    lookup = _StoreLookup(store)
    build = partial(retraining_nodes, champion=champion) if retrain and champion else dag_of
    trees = {name: Tree(experts=()) for name, stage in spec.stages.items() if stage.adaptive}
    cuts: dict[str, list[float]] = {}
    first: str | None = None
    while True:
        grown = with_grown_experts(with_boundaries(spec, cuts), trees)
        nodes, cascade = build(grown, sources)
        verdicts = lookup.verdicts(nodes)
        first = first or _plan_fingerprint(spec, verdicts)
        fingerprints = {i: v.fingerprint for i, v in verdicts.items()}
        more = champion_comparison_nodes(grown, sources, cascade, champion, fingerprints)
        verdicts = lookup.verdicts(more, verdicts)
        found = {name: _grow_tree(grown, name, verdicts) for name in trees}
        measured = _measured_boundaries(verdicts)
        if (found, measured) == (trees, cuts) or retrain:
            return Plan(
                spec=grown,
                verdicts=verdicts,
                fingerprint=first,
                trees={} if retrain else trees,
                champion=champion,
                sources=sources,
                regrow=partial(make, spec, store, sources, champion=champion, retrain=retrain),
                unplaced={} if retrain else _unplaced(grown),
            )
        trees, cuts = found, measured


def _plan_fingerprint(spec: Spec, verdicts: Mapping[str, Verdict]) -> str:
    fingerprints = {i: v.fingerprint for i, v in verdicts.items()}
    grows = {n: s.adaptive.settings() for n, s in spec.stages.items() if s.adaptive}
    waiting = {
        n: [{name: e.settings() for name, e in s.experts.items()}, s.ensemble]
        for n, s in spec.stages.items()
        if not s.is_placed
    }
    later = [*([grows] if grows else []), *([waiting] if waiting else [])]
    return digest([fingerprints, *later] if later else fingerprints)


def with_boundaries(spec: Spec, cuts: Mapping[str, list[float]]) -> Spec:
    """The spec with the boundaries of equal difficulty that are measured: stage → quantiles."""
    placed = {name: spec.stages[name].placed(measured) for name, measured in cuts.items()}
    return spec.model_copy(update={"stages": {**spec.stages, **placed}})


def _measured_boundaries(verdicts: Mapping[str, Verdict]) -> dict[str, list[float]]:
    """Stage → the boundaries that its difficulty node has measured."""
    return {
        v.node.name: v.manifest["info"]["boundaries"]
        for v in verdicts.values()
        if v.node.kind == "difficulty" and v.manifest
    }


def _unplaced(spec: Spec) -> dict[str, int]:
    """Stage without boundaries → images of all its experts but the root."""
    return {
        name: sum(e.images for expert, e in stage.experts.items() if expert != ROOT)
        for name, stage in spec.stages.items()
        if not stage.is_placed
    }


def with_grown_experts(spec: Spec, trees: Mapping[str, Tree]) -> Spec:
    """The spec with the experts and ensembles that its adaptive trees have grown."""
    stages = dict(spec.stages)
    for name, tree in trees.items():
        stage = stages[name]
        experts = {**stage.experts, **dict.fromkeys(tree.experts, stage.grown)}
        stages[name] = stage.model_copy(
            update={"experts": experts, "ensemble": list(tree.ensemble)}
        )
    return spec.model_copy(update={"stages": stages})


def _grow_tree(spec: Spec, stage: str, verdicts: Mapping[str, Verdict]) -> Tree:
    settings = spec.stages[stage].adaptive
    assert settings is not None
    if not spec.stages[stage].is_placed:
        return Tree(experts=())
    metrics = {}
    for name in spec.stages[stage].experts:
        verdict = verdicts[f"train/{stage}/{name}"]
        if verdict.manifest and "val_gain" in verdict.manifest["metrics"]:
            metrics[name] = verdict.manifest["metrics"]
    return grow(settings, metrics, spec.stages[stage].noise, spec.stages[stage].warp)


class _StoreLookup:
    """Looks up nodes' results in a store, each only once however often a tree is regrown."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.files = cache(store.files)  # versions of a data set share their pool of shards
        self.found: dict[str, Verdict] = {}

    def verdicts(
        self, nodes: list[Node], earlier: Mapping[str, Verdict] | None = None
    ) -> dict[str, Verdict]:
        """Verdicts of ``earlier`` and then of ``nodes``, each after its dependencies."""
        found = dict(earlier or {})
        for node in nodes:
            fingerprint = digest(
                {
                    "kind": node.kind,
                    "format": FORMATS[node.kind],
                    "settings": node.settings,
                    "inputs": {role: found[i].fingerprint for role, i in node.inputs.items()}
                    | {role: result.fingerprint for role, result in node.external.items()},
                }
            )
            folder = folder_of(node, fingerprint)
            if folder not in self.found:
                self.found[folder] = self._look_up(node, fingerprint, folder, found)
            found[node.id] = replace(self.found[folder], node=node)
        return found

    def _look_up(
        self, node: Node, fingerprint: str, folder: str, earlier: Mapping[str, Verdict]
    ) -> Verdict:
        manifest = self.store.manifest(folder)
        lost = _lost_shards(self.store, folder, manifest, self.files) if manifest else ""
        if lost:
            manifest, why = None, lost
        elif manifest:
            why = f"done before: settings and inputs unchanged ({fingerprint[:8]})"
        else:
            why = _reason_to_run(node, fingerprint, self.store, earlier)
        return Verdict(node=node, fingerprint=fingerprint, manifest=manifest, why=why)


def finished_elsewhere(store: Store, verdict: Verdict) -> Mapping[str, Any] | None:
    """Manifest of a node that another pipeline has finished since the plan was made; else None."""
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
    """Describe the shards that a data set version lists but the pool lacks; empty if none."""
    if FILE not in manifest["files"]:
        return ""
    try:
        version = Version.open(store, folder)
    except ValueError:
        return "its list of shards is damaged"
    lost = len(version.missing(files))
    return f"{lost} of {len(version)} shards {'is' if lost == 1 else 'are'} lost" if lost else ""


def _reason_to_run(
    node: Node, fingerprint: str, store: Store, verdicts: Mapping[str, Verdict]
) -> str:
    """Explain why a node must run: it was started but not finished, changed, or never done."""
    saved: dict[str, Any] | None = store.read_json(f"{folder_of(node, fingerprint)}/progress.json")
    if saved:
        return f"started before: {saved['done']:,} of {saved['of']:,} {saved['unit']} are saved"
    before: dict[str, Any] | None = store.read_json(f"nodes/{node.path}.latest.json")
    if before is None:
        return "never done here"
    was, now = before["settings"], json.loads(json.dumps(node.settings))
    old = {role: i["fingerprint"] for role, i in before["inputs"].items()}
    read = {role: (i, verdicts[i].fingerprint) for role, i in node.inputs.items()}
    read |= {role: (role, result.fingerprint) for role, result in node.external.items()}
    inputs_changed = [
        f"input {i} changed" for role, (i, is_now) in read.items() if old.get(role) != is_now
    ]
    if _has_other_data(node, was, now, verdicts) or (
        len(inputs_changed) == len(read) and _mostly_differ(was, now)
    ):
        return NOT_BUILT
    changed = data_changed(was.pop("source", None), now.pop("source", None))
    changed += difference(was, now)
    changed += inputs_changed
    if not changed:
        return (
            "format of its result changed" if before["fingerprint"] != fingerprint else "files lost"
        )
    return "; ".join(changed[:2]) + (f" and {len(changed) - 2} more" if len(changed) > 2 else "")


def _has_other_data(
    node: Node, was: Mapping[str, Any], now: Mapping[str, Any], verdicts: Mapping[str, Verdict]
) -> bool:
    """Whether the latest result of a node's id rests on other data than the node does.

    It does if the data or the encoders are made another way, if a user's data set takes the place
    of one that a node makes, or the reverse, if a user's data and its encoders both changed, or if
    this holds for a node that it reads.
    """
    if node.kind in ("data", "encoders") and was.get("make") != now.get("make"):
        return True
    if node.kind == "embed":
        old, new = was.get("source"), now.get("source")
        if bool(old) != bool(new):
            return True
        encoders = [of.get("recipe", {}).get("encoders") for of in (was, now)]
        if old and old != new and encoders[0] != encoders[1]:
            return True
    return any(verdicts[i].why == NOT_BUILT for i in node.inputs.values())


def _mostly_differ(was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether more than half of two nodes' settings differ, and more than two."""
    differing = len(difference(was, now))
    return differing > max(2, settings_count(was, now) / 2)


def data_changed(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> list[str]:
    """Describe how the identity of a user's data set changed; empty if it is the same."""
    if not old or not new or old == new:
        return difference(old, new, "source")
    sizes = [f"{d['shards']:,} shards, {byte_size(d['bytes'])}" for d in (old, new)]
    return ["its data changed" + (f" ({sizes[0]} → {sizes[1]})" if sizes[0] != sizes[1] else "")]
