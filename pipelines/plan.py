"""A spec becomes a plan: the DAG of nodes, their fingerprints, and why each must run or need not.

Pure but for reading the store's manifests, so it can be printed and tested without Ray.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ediffi_core import tree
from ediffi_core.noise import EVERYTHING, Interval
from ediffi_core.unet import PRESETS
from pipelines.spec import Expert, Source, Spec, Stage
from pipelines.store.artifacts import Store

# The version of each kind's result; raising one makes every node of the kind run again.
FORMATS = {"data": 1, "encoders": 1, "embed": 1, "train": 1, "evaluate": 1, "promote": 1}


@dataclass(frozen=True, kw_only=True)
class Node:
    """One step to run: what it is, what it reads, what determines its result, what it needs."""

    kind: str
    name: str
    """Within its kind: ``base/E1_1``, ``validation``."""

    settings: Mapping[str, Any]
    """What determines the result, apart from the inputs: part of the fingerprint."""

    inputs: Mapping[str, str] = field(default_factory=dict)
    """Role → id of the node read."""

    observes: Mapping[str, str] = field(default_factory=dict)
    """Like inputs, but only watched (validation data): not part of the fingerprint."""

    runtime: Mapping[str, Any] = field(default_factory=dict)
    """How it is done (cadence of logs and checkpoints): not part of the fingerprint."""

    cpus: int = 1

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.name}" if self.name else self.kind

    @property
    def needs(self) -> list[str]:
        """Ids of the nodes that must be done first."""
        return sorted({*self.inputs.values(), *self.observes.values()})


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


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def folder_of(node: Node, fingerprint: str) -> str:
    return f"nodes/{node.id}-{fingerprint}"


def interval_of(stage: Stage, expert: str) -> Interval:
    """The slice an expert is trained on; the complement's follows from the ensemble."""
    if expert == tree.COMPLEMENT:
        return tree.intervals_of(stage.ensemble)[expert]
    return EVERYTHING if expert == SINGLE else tree.interval(expert)


SINGLE = "single"


def nodes_of(spec: Spec, sources: Mapping[str, Any]) -> list[Node]:
    """The DAG of a spec, in a valid order.

    Args:
        sources: for ``train`` and ``validation`` data of the user's own, their content's identity
            (:func:`pipelines.sources.identify`); made data needs none.
    """
    nodes: list[Node] = []
    embed_inputs: dict[str, dict[str, str]] = {}
    for split, source in (("train", spec.data.train), ("validation", spec.data.validation)):
        embed_inputs[split] = {}
        if source.make:
            settings = {
                "make": source.make,
                "split": split,
                "rows": source.rows,
                "shards": source.shards,
                "seed": spec.seed,
            }
            nodes.append(Node(kind="data", name=split, settings=settings))
            embed_inputs[split] = {"data": f"data/{split}"}

    encoders: dict[str, Any] = {}
    if spec.encoders.make:
        if not spec.data.train.make:
            raise ValueError(
                "`encoders.make: tiny` trains on made data only; for pictures of your own give "
                "`encoders.t5` and `encoders.clip` by name or folder"
            )
        settings = {"make": "tiny", "clip_images": spec.encoders.clip_images, "seed": spec.seed}
        nodes.append(
            Node(
                kind="encoders",
                name="tiny",
                settings=settings,
                inputs={"data": "data/train"},
                cpus=spec.cpus,
            )
        )
    else:
        encoders = spec.encoders.model_dump(include={"t5", "clip", "clip_pretrained"})

    for stage_name, stage in spec.stages.items():
        nodes += _stage_nodes(spec, stage_name, stage, embed_inputs, encoders, sources)
    nodes.append(_promote_node(spec))
    return nodes


def _stage_nodes(
    spec: Spec,
    stage_name: str,
    stage: Stage,
    embed_inputs: Mapping[str, Mapping[str, str]],
    encoders: Mapping[str, Any],
    sources: Mapping[str, Any],
) -> list[Node]:
    tiny = {"encoders": "encoders/tiny"} if spec.encoders.make else {}
    nodes = []
    for split in ("train", "validation"):
        source: Source = getattr(spec.data, split)
        settings = {
            "resolution": stage.resolution,
            "encoders": encoders,
            "source": None
            if source.make
            else {**sources[split], "image": source.image, "caption": source.caption},
        }
        where = {} if source.make else {"path": source.path}
        nodes.append(
            Node(
                kind="embed",
                name=f"{stage_name}/{split}",
                settings=settings,
                runtime=where,
                inputs={**embed_inputs[split], **tiny},
                cpus=spec.cpus,
            )
        )

    trained = dict(stage.experts)
    if stage.single:
        trained[SINGLE] = stage.single
    ready = sorted(trained, key=_depth)
    nodes += [_train_node(spec, stage_name, stage, name, trained[name]) for name in ready]

    groups = {"ensemble": stage.ensemble, "root": [tree.ROOT]}
    if stage.single:
        groups[SINGLE] = [SINGLE]
    for group, experts in groups.items():
        nodes.append(
            Node(
                kind="evaluate",
                name=f"{stage_name}/{group}",
                settings={
                    **spec.evaluate.model_dump(exclude={"batch"}),
                    "experts": {e: _bounds(interval_of(stage, e)) for e in experts}
                    if group == "ensemble"
                    else {experts[0]: [0.0, 1.0]},
                    "encoders": encoders,
                    "scorer": spec.data.validation.make,
                    "controls": group == "ensemble",
                    "seed": spec.seed,
                },
                inputs={
                    **{e: f"train/{stage_name}/{e}" for e in experts},
                    "validation": f"embed/{stage_name}/validation",
                    **tiny,
                },
                runtime={"batch": spec.evaluate.batch},
            )
        )
    return nodes


def _depth(expert: str) -> tuple[int, bool, str]:
    """Parents before children; the deeper chain first, the comparison last."""
    if expert in (tree.COMPLEMENT, SINGLE):
        return (1, True, expert)
    level, index = tree.level_and_index(expert)
    return (level, False, f"{-index:09d}")


def _bounds(interval: Interval) -> list[float]:
    return [interval.q_lo, interval.q_hi]


def _train_node(spec: Spec, stage_name: str, stage: Stage, name: str, expert: Expert) -> Node:
    single = name == SINGLE
    above = tree.ROOT if single else tree.parent(name)
    network = PRESETS[stage.network.preset].to_dict()
    network["resolution"] = stage.resolution
    network.pop("embeddings")  # those of the shards it reads
    if stage.network.channels:
        network["channels"] = stage.network.channels
    stream = tree.ROOT if single else name
    settings: dict[str, Any] = {
        "expert": name,
        "interval": _bounds(interval_of(stage, name)),
        "images": expert.images,
        "network": network,
        "training": stage.training.model_dump(),
        "noise": {"P_mean": stage.P_mean, "P_std": stage.P_std},
        "sigma_data": stage.sigma_data,
        "start": "fresh" if above is None else "continue" if single else expert.start,
        "stream": f"{stage_name}/{stream}",
        "seed": spec.seed,
    }
    inputs = {"data": f"embed/{stage_name}/train"}
    if above:
        inputs["parent"] = f"train/{stage_name}/{above}"
    return Node(
        kind="train",
        name=f"{stage_name}/{name}",
        settings=settings,
        inputs=inputs,
        observes={"validation": f"embed/{stage_name}/validation"},
        runtime=stage.cadence.model_dump(),
        cpus=min(expert.cpus, spec.cpus),
    )


def _promote_node(spec: Spec) -> Node:
    stages = {
        name: {e: _bounds(i) for e, i in tree.intervals_of(stage.ensemble).items()}
        for name, stage in spec.stages.items()
    }
    inputs = {
        f"{name}/{e}": f"train/{name}/{e}" for name, st in spec.stages.items() for e in st.ensemble
    }
    evaluations = {f"evaluation/{n}": f"evaluate/{n}/ensemble" for n in spec.stages}
    sampling = spec.evaluate.model_dump(include={"guidance", "steps", "solver"})
    tiny = {"encoders": "encoders/tiny"} if spec.encoders.make else {}
    named = {} if tiny else spec.encoders.model_dump(include={"t5", "clip", "clip_pretrained"})
    settings = {"stages": stages, "sampling": sampling, "model": spec.name, "encoders": named}
    return Node(
        kind="promote", name=spec.name, settings=settings, inputs={**inputs, **tiny, **evaluations}
    )


# -- verdicts ------------------------------------------------------------------------------------


def make(spec: Spec, store: Store, sources: Mapping[str, Any]) -> Plan:
    """Works out every node's fingerprint and what the store already has of it."""
    verdicts: dict[str, Verdict] = {}
    for node in nodes_of(spec, sources):
        fingerprint = digest(
            {
                "kind": node.kind,
                "format": FORMATS[node.kind],
                "settings": node.settings,
                "inputs": {role: verdicts[i].fingerprint for role, i in node.inputs.items()},
            }
        )
        manifest = store.manifest(folder_of(node, fingerprint))
        why = (
            f"done before: settings and inputs unchanged ({fingerprint[:8]})"
            if manifest is not None
            else _why_not(node, fingerprint, store, verdicts)
        )
        verdicts[node.id] = Verdict(node=node, fingerprint=fingerprint, manifest=manifest, why=why)
    return Plan(spec=spec, verdicts=verdicts)


def _why_not(node: Node, fingerprint: str, store: Store, verdicts: Mapping[str, Verdict]) -> str:
    """In words, why a node must run: begun before, something changed, or never done."""
    begun: dict[str, Any] | None = store.read_json(f"{folder_of(node, fingerprint)}/progress.json")
    if begun:
        return f"begun before: {begun['done']:,} of {begun['of']:,} {begun['unit']} are safe"
    before: dict[str, Any] | None = store.read_json(f"nodes/{node.id}.latest.json")
    if before is None:
        return "never done here"
    changed = difference(before["settings"], json.loads(json.dumps(node.settings)))
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


def difference(old: Any, new: Any, at: str = "") -> list[str]:
    """Every leaf that differs, as ``key: old → new``."""
    if isinstance(old, dict) and isinstance(new, dict):
        out: list[str] = []
        for key in sorted({*old, *new}):
            out += difference(old.get(key), new.get(key), f"{at}.{key}" if at else str(key))
        return out
    return [] if old == new else [f"{at}: {old} → {new}"]
