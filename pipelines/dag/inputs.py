"""Nodes that prepare what training reads: data, encoders and embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ediffi_core.published import tag_changes_activation
from pipelines.dag.node import Node
from pipelines.spec.pipeline import Spec

SPLITS = ("train", "validation")
ROW_SETTINGS = {"format", "image", "caption", "captions", "key", "scores", "urls", "filters"}
"""The settings of a data source that determine its rows."""


def input_nodes(spec: Spec, sources: Mapping[str, Any]) -> list[Node]:
    """All nodes that prepare data: data, encoders, embed; each after its dependencies."""
    nodes = [*data_nodes(spec), *encoder_nodes(spec)]
    return [*nodes, *(embed_node(spec, split, sources) for split in SPLITS)]


def data_nodes(spec: Spec) -> list[Node]:
    """Nodes that generate data, for the splits whose source has ``make:``.

    Raises:
        ValueError: ``concepts:`` names a thing that there are no drawings of, or one twice.
    """
    for split in SPLITS:
        if (concepts := getattr(spec.data, split).concepts) is not None:
            from pipelines.demo.drawings import indices  # a renderer: not for every plan

            try:
                indices(concepts)
            except ValueError as error:
                raise ValueError(f"`data.{split}.concepts`: {error}") from error
    return [
        Node(
            kind="data",
            name=split,
            settings={
                "make": source.make,
                "split": split,
                "rows": source.rows,
                "shards": source.shards,
                "seed": spec.seed_of_data,
                **source.settings(only={"concepts"}),
            },
        )
        for split in SPLITS
        if (source := getattr(spec.data, split)).make
    ]


def encoder_nodes(spec: Spec) -> list[Node]:
    """The node that trains tiny encoders, if the spec has ``encoders.make``.

    Raises:
        ValueError: The training data is the user's own.
    """
    if not spec.encoders.make:
        return []
    if not spec.data.train.make:
        raise ValueError(
            "`encoders.make: tiny` needs generated data (`data.train.make`); for your own images "
            "set `encoders.t5` and `encoders.clip` to a name or folder"
        )
    clip_images, seed = spec.encoders.clip_images, spec.seed_of_data
    settings = {"make": "tiny", "clip_images": clip_images, "seed": seed}
    inputs = {"data": "data/train"}
    return [Node(kind="encoders", name="tiny", settings=settings, inputs=inputs)]


@dataclass(frozen=True)
class Encoders:
    """The text and image encoders, as the parts of a node that reads them."""

    identity: dict[str, Any]
    """Identity of published or local encoders: goes into the node's settings."""

    named: dict[str, Any]
    """Names or folders to load them from: goes into the node's runtime, not its fingerprint."""

    inputs: dict[str, str]
    """The node that trains the encoders, where the spec makes them."""

    @staticmethod
    def of(spec: Spec, sources: Mapping[str, Any]) -> Encoders:
        """Of a spec; ``sources`` as of :func:`pipelines.dag.nodes.dag_of`."""
        given = spec.encoders.settings()
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
    """The setting ``<role>_activation``, if the CLIP's pretrained tag selects QuickGELU.

    It tells these embeddings apart from older ones, which ignored the tag; empty for other models.
    """
    followed = tag_changes_activation(clip, pretrained)
    return {f"{role}_activation": "QuickGELU of its tag"} if followed else {}


def embed_node(spec: Spec, split: str, sources: Mapping[str, Any]) -> Node:
    """The node that resizes and embeds a split (``train`` or ``validation``)."""
    source = getattr(spec.data, split)
    encoders = Encoders.of(spec, sources)
    stages = spec.stages.values()
    recipe = {
        "resolutions": sorted({stage.resolution for stage in stages}),
        "full": sorted({stage.resolution for stage in stages if stage.crop}),
        "packing": spec.embedding.packing,
        "read": None if source.make else source.settings(ROW_SETTINGS),
        "encoders": encoders.identity,
    }
    found = None if source.make else sources[split]
    shards = source.shards if found is None else found["shards"]
    return Node(
        kind="embed",
        name=split,
        settings={
            "recipe": recipe,
            "source": found and {k: found[k] for k in ("shards", "bytes", "identity")},
        },
        runtime={
            "source": source.settings(),
            "encoders": encoders.named,
            "embedding": spec.embedding.running,
        },
        inputs={**({"data": f"data/{split}"} if source.make else {}), **encoders.inputs},
        cpus=min(spec.cpus, shards or spec.cpus),  # a shard is one actor's; 0 if not yet known
        gpus=spec.embedding.gpus,
        labels=spec.embedding.labels,
    )
