"""A spec becomes nodes: the DAG of what must be done, and what determines each result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ediffi_core import tree
from ediffi_core.noise import EVERYTHING, Interval
from ediffi_core.unet import PRESETS
from pipelines.spec import Expert, Spec, Stage

SINGLE = "single"
SPLITS = ("train", "validation")
READING = {"format", "image", "caption", "captions", "key", "scores", "filters"}
"""What of a source's settings determines its rows."""


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


def interval_of(stage: Stage, expert: str) -> Interval:
    """The slice an expert is trained on; the complement's follows from the ensemble."""
    if expert == tree.COMPLEMENT:
        return tree.intervals_of(stage.ensemble)[expert]
    return EVERYTHING if expert == SINGLE else tree.interval(expert)


def nodes_of(spec: Spec, sources: Mapping[str, Any]) -> list[Node]:
    """The DAG of a spec, in a valid order.

    Args:
        sources: the identity of the user's own data and encoders
            (:func:`pipelines.sources.identify_all`); what nodes make needs none.
    """
    nodes = [*_data_nodes(spec), *_encoder_nodes(spec)]
    nodes += [_embed_node(spec, split, sources) for split in SPLITS]
    for name, stage in spec.stages.items():
        trained = {**stage.experts, **({SINGLE: stage.single} if stage.single else {})}
        for expert in sorted(trained, key=_depth):
            nodes.append(_train_node(spec, sources, name, expert, trained[expert]))
        groups = {"ensemble": stage.ensemble}
        if stage is _first(spec):
            groups["root"] = [tree.ROOT]
        if stage.single:
            groups[SINGLE] = [SINGLE]
        nodes += [_evaluate_node(spec, sources, name, group, groups[group]) for group in groups]
    nodes.append(_promote_node(spec, sources))
    return nodes


def _first(spec: Spec) -> Stage:
    return next(iter(spec.stages.values()))


def _data_nodes(spec: Spec) -> list[Node]:
    return [
        Node(
            kind="data",
            name=split,
            settings={
                "make": source.make,
                "split": split,
                "rows": source.rows,
                "shards": source.shards,
                "seed": spec.seed,
            },
        )
        for split in SPLITS
        if (source := getattr(spec.data, split)).make
    ]


def _encoder_nodes(spec: Spec) -> list[Node]:
    if not spec.encoders.make:
        return []
    if not spec.data.train.make:
        raise ValueError(
            "`encoders.make: tiny` trains on made data only; for pictures of your own give "
            "`encoders.t5` and `encoders.clip` by name or folder"
        )
    settings = {"make": "tiny", "clip_images": spec.encoders.clip_images, "seed": spec.seed}
    inputs = {"data": "data/train"}
    return [Node(kind="encoders", name="tiny", settings=settings, inputs=inputs, cpus=spec.cpus)]


@dataclass(frozen=True)
class _Encoders:
    """The encoders as a node sees them."""

    identity: dict[str, Any]
    """Of named ones: part of the settings."""

    named: dict[str, Any]
    """Where they are: how it is done, not what comes of it."""

    inputs: dict[str, str]
    """Of made ones: the node that makes them."""

    @staticmethod
    def of(spec: Spec, sources: Mapping[str, Any]) -> _Encoders:
        given = spec.encoders.model_dump()
        further = {
            name: {**more, "model": sources["encoders"][name]}
            for name, more in given["more"].items()
        }
        if spec.encoders.make:
            made = {"encoders": "encoders/tiny"}
            return _Encoders({"more": further}, {"more": given["more"]}, made)
        identity = {role: sources["encoders"][role] for role in ("t5", "clip")}
        settings = {k: given[k] for k in ("clip_pretrained", "t5_dtype")}
        places = {k: given[k] for k in ("t5", "clip", "more")}
        return _Encoders({**identity, **settings, "more": further}, {**places, **settings}, {})


def _embed_node(spec: Spec, split: str, sources: Mapping[str, Any]) -> Node:
    source = getattr(spec.data, split)
    encoders = _Encoders.of(spec, sources)
    stages = spec.stages.values()
    recipe = {
        "resolutions": sorted({stage.resolution for stage in stages}),
        "full": sorted({stage.resolution for stage in stages if stage.crop}),
        "packing": spec.embedding.packing,
        "read": None if source.make else source.model_dump(include=READING),
        "encoders": encoders.identity,
    }
    found = None if source.make else sources[split]
    return Node(
        kind="embed",
        name=split,
        settings={
            "recipe": recipe,
            "source": found and {k: found[k] for k in ("shards", "bytes", "identity")},
        },
        runtime={
            "source": source.model_dump(),
            "encoders": encoders.named,
            "embedding": spec.embedding.running,
        },
        inputs={**({"data": f"data/{split}"} if source.make else {}), **encoders.inputs},
        cpus=spec.cpus,
    )


def _depth(expert: str) -> tuple[int, bool, str]:
    """Parents before children; the deeper chain first, the comparison last."""
    if expert in (tree.COMPLEMENT, SINGLE):
        return (1, True, expert)
    level, index = tree.level_and_index(expert)
    return (level, False, f"{-index:09d}")


def _bounds(interval: Interval) -> list[float]:
    return [interval.q_lo, interval.q_hi]


def _train_node(
    spec: Spec, sources: Mapping[str, Any], stage_name: str, name: str, expert: Expert
) -> Node:
    stage = spec.stages[stage_name]
    single = name == SINGLE
    above = tree.ROOT if single else tree.parent(name)
    network = PRESETS[stage.network.preset].to_dict()
    network["resolution"] = stage.crop or stage.resolution
    network.pop("embeddings")  # those of the shards it reads
    if stage.network.channels:
        network["channels"] = stage.network.channels
    stream = tree.ROOT if single else name
    settings: dict[str, Any] = {
        "expert": name,
        "interval": _bounds(interval_of(stage, name)),
        "images": expert.images,
        "resolution": stage.resolution,
        "network": network,
        "training": stage.training.model_dump(),
        "noise": {"P_mean": stage.P_mean, "P_std": stage.P_std},
        "sigma_data": stage.sigma_data,
        "start": "fresh" if above is None else "continue" if single else expert.start,
        "optimizer": expert.optimizer,
        "stream": f"{stage_name}/{stream}",
        "seed": spec.seed,
    }
    settings |= _super_resolution(spec, stage_name)
    inputs = {"data": "embed/train"}
    if above:
        inputs["parent"] = f"train/{stage_name}/{above}"
    return Node(
        kind="train",
        name=f"{stage_name}/{name}",
        settings=settings,
        inputs=inputs,
        observes={"validation": "embed/validation"},
        runtime={
            **stage.cadence.model_dump(),
            "workers": stage.workers.model_dump(),
            "encoders": _Encoders.of(spec, sources).named,
        },
        cpus=stage.workers.count * expert.cpus,
    )


def _super_resolution(spec: Spec, stage_name: str) -> dict[str, Any]:
    """What a stage that enlarges the pictures of the one below needs to know."""
    names, stage = list(spec.stages), spec.stages[stage_name]
    if stage is _first(spec):
        return {}
    below = spec.stages[names[names.index(stage_name) - 1]]
    how = {
        "factor": stage.resolution // below.resolution,
        "crop": stage.crop,
        "degrade": stage.degrade.model_dump(),
    }
    return {"super_resolution": how}


def _cascade(spec: Spec, up_to: str) -> list[str]:
    names = list(spec.stages)
    return names[: names.index(up_to) + 1]


def _stage_settings(spec: Spec, name: str, experts: list[str]) -> dict[str, Any]:
    """What drawing with a stage needs besides the weights."""
    stage = spec.stages[name]
    ensemble = experts == stage.ensemble
    return {
        "name": name,
        "resolution": stage.resolution,
        "sampling": stage.sampling.model_dump(),
        **_super_resolution(spec, name),
        "experts": {
            e: _bounds(interval_of(stage, e)) if ensemble else _bounds(EVERYTHING) for e in experts
        },
    }


def _evaluate_node(
    spec: Spec, sources: Mapping[str, Any], stage_name: str, group: str, experts: list[str]
) -> Node:
    """A stage's experts behind the ensembles of the stages below."""
    encoders = _Encoders.of(spec, sources)
    chain = {n: spec.stages[n].ensemble for n in _cascade(spec, stage_name)}
    chain[stage_name] = experts
    settings = {
        "captions": spec.evaluate.captions,
        "scoring_clip": spec.evaluate.clip and sources["encoders"]["scorer"],
        "scoring_pretrained": spec.evaluate.clip and spec.evaluate.clip_pretrained,
        "stages": [_stage_settings(spec, n, e) for n, e in chain.items()],
        "encoders": encoders.identity,
        "scorer": spec.data.validation.make,
        "controls": group == "ensemble",
        "seed": spec.seed,
    }
    weights = {f"{n}/{e}": f"train/{n}/{e}" for n, experts in chain.items() for e in experts}
    return Node(
        kind="evaluate",
        name=f"{stage_name}/{group}",
        settings=settings,
        inputs={**weights, "validation": "embed/validation", **encoders.inputs},
        runtime={
            "batch": spec.evaluate.batch,
            "encoders": encoders.named,
            "scoring_clip": spec.evaluate.clip,
        },
        cpus=spec.evaluate.cpus,
    )


def _promote_node(spec: Spec, sources: Mapping[str, Any]) -> Node:
    encoders = _Encoders.of(spec, sources)
    stages = [_stage_settings(spec, name, stage.ensemble) for name, stage in spec.stages.items()]
    weights = {
        f"{name}/{e}": f"train/{name}/{e}" for name, st in spec.stages.items() for e in st.ensemble
    }
    evaluations = {f"evaluation/{name}": f"evaluate/{name}/ensemble" for name in spec.stages}
    settings = {"stages": stages, "model": spec.name, "encoders": encoders.identity}
    return Node(
        kind="promote",
        name=spec.name,
        settings=settings,
        inputs={**weights, **encoders.inputs, **evaluations},
        runtime={"encoders": encoders.named},
    )
