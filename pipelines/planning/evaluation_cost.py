"""Cost of evaluations, and of the features that they compare with."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from pipelines.dag.plan import Node
from pipelines.formatting import byte_size
from pipelines.planning.cost import Cost, Power, money_for, power_of
from pipelines.planning.encoder_cost import clip_size
from pipelines.planning.network_size import size_of
from pipelines.planning.stage_networks import config_of
from pipelines.planning.training_cost import TRAINING_PASSES
from pipelines.spec.cluster import Cluster
from pipelines.spec.evaluation import UNTRAINED_CAPTIONS, FeatureNetwork
from pipelines.spec.pipeline import Spec
from pipelines.spec.sampling import Sampling

INCEPTION_FLOPS = 2 * 5.71e9
"""FLOPs of InceptionV3 for one picture: torchvision's table has 5.71 G multiply-adds."""

INCEPTION_DIM = 2048
FLOAT_BYTES = 4
PIXEL_BYTES = 3 * (4 + 1)
"""Of a drawn pixel: three channels in float32, and as bytes."""


@dataclass(frozen=True, kw_only=True)
class EvaluationFlops:
    """FLOPs of an evaluation, by what it computes."""

    losses: float
    """Of the validation loss, at the training resolution."""

    images: float
    """Of drawing images: images × network calls of each stage × a forward pass at full resolution,
    doubled by guidance."""

    features: float
    """Of the networks of ``evaluate.features`` whose size is known, for the drawn images."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.losses + self.images + self.features


@dataclass(frozen=True)
class FeatureSize:
    """What the features of one picture cost; None where it is unknown before the network is
    loaded."""

    flops: float | None
    dim: int | None


def feature_size(spec: Spec, given: FeatureNetwork) -> FeatureSize:
    """Size of a network of ``evaluate.features``."""
    if given.kind == "inception":
        return FeatureSize(INCEPTION_FLOPS, int(given.layer or INCEPTION_DIM))
    model = given.model or spec.encoders.clip
    size = clip_size(model) if given.kind == "clip" and model else None
    if size is None:
        return FeatureSize(None, None)
    return FeatureSize(size.vision.flops(size.image_tokens), size.dim)


def evaluation_flops(spec: Spec, node: Node) -> EvaluationFlops:
    """FLOPs of an evaluate node."""
    s = node.settings
    pictures = s["captions"]
    if s["metrics"] and s["controls"]:
        pictures += min(UNTRAINED_CAPTIONS, s["captions"])
    draws = s["losses"]["draws"] * len(s["losses"]["experts"])
    losses = draws * size_of(config_of(spec, s["stages"][-1]["name"])).flops
    images = 0.0
    for stage in s["stages"]:
        calls = Sampling.from_settings(stage["sampling"]).network_calls
        one = size_of(config_of(spec, stage["name"]), stage["resolution"]).flops
        images += pictures * calls * one
    sizes = [feature_size(spec, spec.evaluate.features[name]) for name in s.get("features", {})]
    features = s["captions"] * sum(size.flops or 0.0 for size in sizes)
    return EvaluationFlops(losses=losses, images=images, features=features)


def evaluation(spec: Spec, node: Node, cluster: Cluster) -> Cost:
    """Time = FLOPs of :func:`evaluation_flops` ÷ FLOP/s of the workers that have a chunk to draw.

    The pictures are drawn in chunks of ``evaluate.batch``, each by one worker; so time falls with
    the number of workers, in steps of whole chunks.
    """
    parts, s = evaluation_flops(spec, node), node.settings
    power = power_of(node, cluster, "float32")
    pictures, batch, workers = s["captions"], node.runtime["batch"], node.runtime["actors"]
    busy = _busy(pictures, batch, workers)
    seconds = (parts.losses + (parts.images + parts.features) / busy) / power.speed
    sides = [stage["resolution"] for stage in s["stages"]]
    one = PIXEL_BYTES * sum(side**2 for side in sides)
    areas = " + ".join(f"{side:,}²" for side in sides)
    held = (
        f"pictures held by a worker: {batch:,} × ({areas}) × {PIXEL_BYTES} B = "
        f"{byte_size(batch * one)}; all at once would be {byte_size(pictures * one)}"
    )
    sizes = [feature_size(spec, spec.evaluate.features[name]) for name in s.get("features", {})]
    kept = pictures * sum(FLOAT_BYTES * (size.dim or 0) for size in sizes)
    features = f"; features kept: {byte_size(kept)}" if kept else ""
    how = f"{_chunks(pictures, batch, workers)}; {power.how}; {held}{features}"
    return _cost(power, flops=parts.total, seconds=seconds, kept=kept, how=how)


def features(spec: Spec, node: Node, cluster: Cluster) -> Cost:
    """Time = real pictures × FLOPs of the network ÷ FLOP/s; nothing if either is unknown."""
    size = feature_size(spec, spec.evaluate.features[node.runtime["name"]])
    split = spec.data.validation if node.inputs["data"].endswith("/validation") else spec.data.train
    pairs = split.rows if split.make else split.pairs
    rows = min(node.settings["rows"] or pairs or 0, pairs or node.settings["rows"] or 0)
    if size.flops is None or not rows:
        return Cost()
    power = power_of(node, cluster, "float32")
    seconds = rows * size.flops / power.speed
    kept = rows * FLOAT_BYTES * (size.dim or 0)
    how = f"{rows:,} pictures × {size.flops / 1e9:,.4g} GFLOPs; {power.how}"
    return _cost(power, flops=rows * size.flops, seconds=seconds, kept=kept, how=how)


def gradients(spec: Spec, node: Node, cluster: Cluster) -> Cost:
    """Time = shares of p(σ) × pictures × FLOPs of a forward and a backward pass ÷ FLOP/s."""
    bins, pictures = node.settings["bins"], node.settings["pictures"]
    one = TRAINING_PASSES * size_of(config_of(spec, node.name.partition("/")[0])).flops
    power, flops = power_of(node, cluster, "float32"), bins * pictures * one
    how = f"{bins:,} shares of p(σ) × {pictures:,} pictures × {one / 1e9:,.4g} GFLOPs; {power.how}"
    return _cost(power, flops=flops, seconds=flops / power.speed, kept=0, how=how)


def _cost(power: Power, *, flops: float, seconds: float, kept: int, how: str) -> Cost:
    """The cost of a node whose results have ``kept`` bytes."""
    return Cost(
        flops=flops,
        seconds=seconds,
        group=power.group,
        gang=power.gang,
        money=money_for(power.price, power.gang, seconds),
        kept_bytes=kept,
        written_bytes=kept,
        how=how,
    )


def _busy(pictures: int, batch: int, workers: int) -> float:
    """Share of the workers' time that they have a chunk to draw."""
    chunks = ceil(pictures / batch)
    return chunks / (ceil(chunks / workers) * workers)


def _chunks(pictures: int, batch: int, workers: int) -> str:
    chunks = ceil(pictures / batch)
    shared = f", {ceil(chunks / workers):,} for each of {workers:,} workers" if workers > 1 else ""
    of = "1 chunk" if chunks == 1 else f"{chunks:,} chunks"
    return f"{pictures:,} pictures in {of} of {batch:,}{shared}"
