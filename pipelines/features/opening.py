"""Load the networks that a spec's ``evaluate.features`` names."""

from __future__ import annotations

from pipelines.features.clip import CLIPFeatures
from pipelines.features.extractor import Extractor
from pipelines.features.inception import InceptionFeatures
from pipelines.features.network import NetworkFeatures, TorchScriptFeatures
from pipelines.spec.evaluation import FeatureNetwork


def open_extractor(
    name: str,
    given: FeatureNetwork,
    *,
    clip: str | None = None,
    clip_pretrained: str | None = None,
    device: str = "cpu",
) -> Extractor:
    """Load a network of ``evaluate.features``.

    Args:
        name: what results on its features are called by.
        given: the spec's settings, ``FeatureNetwork.from_settings`` of a node's.
        clip, clip_pretrained: the CLIP that conditions, for ``kind: clip`` without a model.

    Raises:
        ValueError: It cannot be loaded.
    """
    if given.kind == "clip":
        own = given.model is None
        model = clip if own else given.model
        if model is None:
            raise ValueError(f"`evaluate.features.{name}`: name a CLIP as `model:`")
        tag = clip_pretrained if own else given.pretrained
        return CLIPFeatures(name, model, pretrained=tag, device=device)
    weights = given.weights or ""
    if given.kind == "inception":
        return InceptionFeatures(name, weights, layer=given.layer, device=device)
    if given.is_torchscript:
        return TorchScriptFeatures(
            name, weights, size=given.size, mean=given.mean, std=given.std, device=device
        )
    return NetworkFeatures(name, given.model or "", weights, layer=given.layer, device=device)
