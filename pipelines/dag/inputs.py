"""Nodes that make what training reads: data, encoders, embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ediffi_core.published import tag_changes_activation
from pipelines.dag.node import Node
from pipelines.spec.pipeline import Spec

SPLITS = ("train", "validation")
READING = {"format", "image", "caption", "captions", "key", "scores", "filters"}
"""What of a source's settings determines its rows."""


def input_nodes(spec: Spec, sources: Mapping[str, Any]) -> list[Node]:
    nodes = [*data_nodes(spec), *encoder_nodes(spec)]
    return [*nodes, *(embed_node(spec, split, sources) for split in SPLITS)]


def data_nodes(spec: Spec) -> list[Node]:
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


def encoder_nodes(spec: Spec) -> list[Node]:
    if not spec.encoders.make:
        return []
    if not spec.data.train.make:
        raise ValueError(
            "`encoders.make: tiny` trains on made data only; for pictures of your own give "
            "`encoders.t5` and `encoders.clip` by name or folder"
        )
    settings = {"make": "tiny", "clip_images": spec.encoders.clip_images, "seed": spec.seed}
    inputs = {"data": "data/train"}
    return [Node(kind="encoders", name="tiny", settings=settings, inputs=inputs)]


@dataclass(frozen=True)
class Encoders:
    """The encoders as a node sees them."""

    identity: dict[str, Any]
    """Of named ones: part of the settings."""

    named: dict[str, Any]
    """Where they are: how it is done, not what comes of it."""

    inputs: dict[str, str]
    """Of made ones: the node that makes them."""

    @staticmethod
    def of(spec: Spec, sources: Mapping[str, Any]) -> Encoders:
        given = spec.encoders.model_dump()
        further = {
            name: {**more, "model": sources["encoders"][name]}
            for name, more in given["more"].items()
        }
        if spec.encoders.make:
            made = {"encoders": "encoders/tiny"}
            return Encoders({"more": further}, {"more": given["more"]}, made)
        identity = {role: sources["encoders"][role] for role in ("t5", "clip")}
        settings = {k: given[k] for k in ("clip_pretrained", "t5_dtype")}
        places = {k: given[k] for k in ("t5", "clip", "more")}
        identity |= activation("clip", given["clip"], given["clip_pretrained"])
        return Encoders({**identity, **settings, "more": further}, {**places, **settings}, {})


def activation(role: str, clip: str, pretrained: str | None) -> dict[str, str]:
    """A setting where a CLIP's tag chooses its activation, as embeddings without it had another."""
    followed = tag_changes_activation(clip, pretrained)
    return {f"{role}_activation": "QuickGELU of its tag"} if followed else {}


def embed_node(spec: Spec, split: str, sources: Mapping[str, Any]) -> Node:
    source = getattr(spec.data, split)
    encoders = Encoders.of(spec, sources)
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
        gpus=spec.embedding.gpus,
        labels=spec.embedding.labels,
    )
