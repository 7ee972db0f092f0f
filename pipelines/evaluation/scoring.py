"""Scores and features of a batch of pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ediffi_core.encoders import CLIP
from ediffi_core.metrics import clip_scores
from pipelines.evaluation.scores import Scores
from pipelines.features.extractor import Extractor
from pipelines.metrics import Metric, Pictures, metric
from pipelines.store.artifacts import Store

MAIN = "main"
"""Name of the features of CLIP, or of the first metric that has features."""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How pictures are scored, as workers load it."""

    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Metric → its ``options``, and the ``folder`` in the store of what it has learned."""

    clip: Callable[..., CLIP] | None = None
    """Loads the CLIP of the CLIP score, given a ``device``; None for no CLIP score."""

    features: Mapping[str, Callable[..., Extractor]] = field(default_factory=dict)
    """Name → loads a network whose features are kept, given a ``device``."""


class Scorer:
    """The metrics and networks of a :class:`Scoring`, loaded."""

    def __init__(self, scoring: Scoring, store: Store, device: str) -> None:
        """Load everything; ValueError if something cannot be loaded."""
        self.metrics: list[Metric] = []
        for name, how in scoring.metrics.items():
            one = metric(name, how["options"])
            one.open(store.local(how["folder"]))
            self.metrics.append(one)
        self.clip = scoring.clip(device=device) if scoring.clip else None
        self.extractors = [load(device=device) for load in scoring.features.values()]

    def caption_scores(self, pictures: Pictures, captions: list[str]) -> Scores:
        """How well pictures show what their captions ask for, by the spec's metrics."""
        return {
            name: torch.from_numpy(values)
            for one in self.metrics
            for name, values in one.score(pictures, captions).items()
        }

    def main_features(self, pictures: Pictures) -> dict[str, Tensor]:
        """Features :data:`MAIN`; empty if nothing provides any. [N, D] float32"""
        if self.clip:
            return {MAIN: self.clip.image([Image.fromarray(p) for p in pictures]).float().cpu()}
        found = (one.features(pictures) for one in self.metrics)
        first = next((f for f in found if f is not None), None)
        return {} if first is None else {MAIN: torch.from_numpy(first)}

    def named_features(self, pictures: Pictures) -> dict[str, Tensor]:
        """Features of all networks, by name. [N, D] float32 each"""
        return {one.name: one.features(pictures) for one in self.extractors}

    def text_alignment(self, features: Mapping[str, Tensor], captions: list[str]) -> Scores:
        """CLIP score of each picture with its caption; empty without CLIP.

        Args:
            features: the pictures', from :meth:`main_features`.
        """
        if not self.clip:
            return {}
        text = self.clip.text(captions)[1]
        return {"clip_score": clip_scores(features[MAIN], text.cpu())}
