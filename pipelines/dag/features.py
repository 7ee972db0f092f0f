"""Nodes that compute features of real pictures, once for all evaluations that compare with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.dag.inputs import Encoders
from pipelines.dag.node import Node
from pipelines.spec.evaluation import FeatureNetwork
from pipelines.spec.pipeline import Spec

NEIGHBOURS = "neighbours"
"""The measure that compares with the training pictures."""


@dataclass(frozen=True)
class Network:
    """A network of ``evaluate.features``, as the parts of a node that uses it."""

    identity: dict[str, Any]
    """What determines its features; part of the fingerprint."""

    named: dict[str, Any]
    """Its settings in the spec, from which it is loaded; not part of the fingerprint."""

    inputs: dict[str, str]
    """The node that trains the encoders, if it is the CLIP of that node."""

    @staticmethod
    def of(spec: Spec, sources: Mapping[str, Any], name: str) -> Network:
        """Of a name; ``sources`` as of :func:`pipelines.dag.nodes.dag_of`."""
        given = spec.evaluate.features[name]
        identity = dict(sources["features"][name])
        inputs: dict[str, str] = {}
        if is_conditioning(given):
            encoders = Encoders.of(spec, sources)
            inputs = encoders.inputs
            own = ("clip", "clip_pretrained", "clip_activation")
            identity |= {k: v for k, v in encoders.identity.items() if k in own}
        named = given.settings()
        if given.weights:  # workers may run in another folder
            named["weights"] = str(Path(given.weights).expanduser().absolute())
        return Network(identity, named, inputs)


def is_conditioning(given: FeatureNetwork) -> bool:
    """Whether the network is the CLIP that conditions."""
    return given.kind == "clip" and given.model is None


def features_id(stage: str, name: str, split: str) -> str:
    """Id of the node that computes features of a split's real pictures, as a stage has them."""
    return f"features/{stage}/{name}-{split}"


def features_nodes(spec: Spec, sources: Mapping[str, Any]) -> Iterator[Node]:
    """Features of the validation pictures at each stage's resolution, and, for ``neighbours``, of
    the training pictures."""
    for name in spec.evaluate.features:
        splits = ["validation"]
        if NEIGHBOURS in spec.evaluate.measures_on(name):
            splits.append("train")
        for stage in spec.stages:
            for split in splits:
                yield _features_node(spec, sources, stage, name, split)


def _features_node(
    spec: Spec, sources: Mapping[str, Any], stage: str, name: str, split: str
) -> Node:
    evaluate, network = spec.evaluate, Network.of(spec, sources, name)
    # As many real pictures as are drawn: those of the same captions.
    rows = evaluate.captions if split == "validation" else evaluate.neighbours_pictures
    return Node(
        kind="features",
        name=features_id(stage, name, split).removeprefix("features/"),
        settings={
            "network": network.identity,
            "resolution": spec.stages[stage].resolution,
            "rows": rows,
            **({"spread": True} if split == "train" else {}),
        },
        inputs={"data": f"embed/{split}", **network.inputs},
        runtime={
            "name": name,
            "network": network.named,
            "encoders": Encoders.of(spec, sources).named,
            "batch": evaluate.batch,
            **worker_settings(spec),
        },
        cpus=evaluate.workers * evaluate.cpus,
        gpus=evaluate.workers * evaluate.gpus,
        labels=evaluate.labels,
    )


def worker_settings(spec: Spec) -> dict[str, Any]:
    """A node's runtime settings of ``evaluate.workers``, and of what each of them holds."""
    evaluate = spec.evaluate
    return {"actors": evaluate.workers, "gpus": evaluate.gpus, "labels": evaluate.labels}


@dataclass(frozen=True)
class MeasuredFeatures:
    """The measures on features, as the parts of an evaluate node; all empty without any."""

    settings: dict[str, Any]
    inputs: dict[str, str]
    runtime: dict[str, Any]

    @staticmethod
    def of(spec: Spec, sources: Mapping[str, Any], stage: str, *, own: bool) -> MeasuredFeatures:
        """Of an evaluation of a stage's pictures.

        Args:
            own: whether this plan's data trained what is evaluated, so that ``neighbours`` has a
                meaning.
        """
        evaluate = spec.evaluate
        if not evaluate.features:
            return MeasuredFeatures({}, {}, {})
        networks = {name: Network.of(spec, sources, name) for name in evaluate.features}
        measures = {
            name: [m for m in evaluate.measures_on(name) if own or m != NEIGHBOURS]
            for name in networks
        }
        inputs = {}
        for name in networks:
            inputs[f"real/{name}"] = features_id(stage, name, "validation")
            if NEIGHBOURS in measures[name]:
                inputs[f"training/{name}"] = features_id(stage, name, "train")
        return MeasuredFeatures(
            settings={
                "features": {name: network.identity for name, network in networks.items()},
                "measures": measures,
                "measure_options": evaluate.measure_options.settings(),
            },
            inputs=inputs,
            runtime={"features": {name: network.named for name, network in networks.items()}},
        )
