"""The model that a probe looks at, with captions, real pictures and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from ediffi_core.cascade import CascadeStage
from ediffi_core.conditioning import Conditioning
from ediffi_core.control import Control
from ediffi_core.ensemble import Ensemble
from ediffi_core.metrics import MIN_KERNEL_PICTURES, Estimate, kernel_distance
from ediffi_core.stage_settings import DEFAULTS, with_settings
from pipelines.evaluation.job import Source
from pipelines.evaluation.scores import Scores, finite, lower_is_better
from pipelines.evaluation.scoring import MAIN, Scorer, Scoring
from pipelines.metrics import Pictures
from pipelines.models.stages import Weights, draw, load_stages
from pipelines.spec.sampling import Sampling
from pipelines.store.artifacts import Store

KERNEL = "kernel_distance"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a probe found."""

    data: Mapping[str, Any]
    """JSON-ready: all that is needed to draw the figure."""

    metrics: Mapping[str, float]
    """Name → value, for tables and MLflow."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Consecutive validation captions, drawn together."""

    first: int
    """Number of the first one; picture i is drawn from the noise of (seed, i)."""

    captions: list[str]
    cond: Conditioning
    real: Pictures | None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Pictures of a model for some captions: scores and features, in the order of the captions."""

    scores: Scores
    features: Tensor | None
    """[N, D]; None if no metric has features."""

    real: Tensor | None
    """Features of the real pictures of the captions. [N, D]"""

    def measures(self, rows: Tensor | None = None) -> Scores:
        """Scores of some pictures, with their kernel distance to the real pictures of their
        captions if there are enough of them.

        Args:
            rows: [N] bool; all by default.
        """
        rows = torch.ones(self.count, dtype=torch.bool) if rows is None else rows
        found = {name: values[rows] for name, values in self.scores.items()}
        if self.features is None or self.real is None or int(rows.sum()) < MIN_KERNEL_PICTURES:
            return found
        return {**found, KERNEL: kernel_distance(self.features[rows], self.real[rows])}

    @property
    def count(self) -> int:
        """Number of pictures."""
        of = self.features if self.features is not None else next(iter(self.scores.values()))
        return len(of)


@dataclass(kw_only=True)
class Model:
    """A model of the base stage, loaded, and all that its probes need."""

    source: Source
    """Validation captions and pictures."""

    stage: CascadeStage
    sampling: Sampling
    """The stage's settings."""

    scorer: Scorer
    seed: int
    batch: int
    """Pictures drawn at once."""

    device: str
    progress: Callable[[int, int], None]
    """Called with the pictures that are drawn, and the number of all."""

    to_draw: int = 0
    """Pictures that the probe will draw in all."""

    drawn: int = 0
    _batches: dict[int, Batch] = field(default_factory=dict)
    _real: dict[int, Tensor | None] = field(default_factory=dict)

    @staticmethod
    def load(
        store: Store,
        stages: Sequence[Mapping[str, Any]],
        weights: Weights,
        *,
        source: Source,
        scoring: Scoring,
        seed: int,
        batch: int,
        device: str = "cpu",
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> Model:
        """Load a model.

        Args:
            stages, weights: as of :func:`pipelines.models.stages.load_stages`.

        Raises:
            ValueError: The model is a cascade, or its weights or metrics cannot be loaded.
        """
        if len(stages) > 1:
            raise ValueError(
                f"probes look at the base stage, but {stages[-1]['name']} enlarges the pictures of "
                f"{stages[-2]['name']}; probe {stages[0]['name']}"
            )
        [stage] = load_stages(store, stages, weights, device=device)
        return Model(
            source=source,
            stage=stage,
            sampling=Sampling.from_settings(stages[0]["sampling"]),
            scorer=Scorer(scoring, store, device),
            seed=seed,
            batch=batch,
            device=device,
            progress=progress,
        )

    @property
    def ensemble(self) -> Ensemble:
        """The stage's experts."""
        return cast(Ensemble, self.stage.denoiser)

    def batches(self, count: int) -> list[Batch]:
        """The first captions of the validation data, in the batches of an evaluation of them.

        Args:
            count: number of captions; fewer if there are not as many.
        """
        starts = range(0, min(count, len(self.source)), self.batch)
        return [self._read(range(at, min(at + self.batch, starts.stop))) for at in starts]

    def _read(self, rows: range) -> Batch:
        batch = self._batches.get(rows.start)
        if batch is None or len(batch.captions) != len(rows):
            cond, real = self.source.read(rows)
            captions, cond = self.source.captions(rows), cond.to(self.device)
            batch = Batch(first=rows.start, captions=captions, cond=cond, real=real)
            self._batches[rows.start] = batch
        return batch

    def pairs(self, count: int) -> list[tuple[Batch, Batch]]:
        """Batches of captions, each with one of as many other captions.

        Args:
            count: number of pairs; half the captions at most.

        Raises:
            ValueError: There are fewer than two captions.
        """
        pairs = min(count, len(self.source) // 2)
        if not pairs:
            raise ValueError("pairs of captions need at least 2 validation captions; add some")
        found = []
        for at in range(0, pairs, self.batch):
            rows = range(at, min(at + self.batch, pairs))
            other = range(pairs + rows.start, pairs + rows.stop)
            found.append((self._read(rows), self._read(other)))
        return found

    def draw(
        self,
        batch: Batch,
        *,
        stage: CascadeStage | None = None,
        cond: Conditioning | None = None,
        control: Control | None = None,
    ) -> Pictures:
        """Draw a picture for each caption of a batch. uint8 [N, R, R, 3]

        Args:
            stage: with other settings; by default the model's own.
            cond: by default the captions'.
            control: as of :func:`ediffi_core.cascade.sample`.
        """
        stage = stage or self.stage
        cond = batch.cond if cond is None else cond
        size = len(batch.captions)
        found = draw([stage], cond, seed=self.seed, first=batch.first, batch=size, control=control)
        self.drawn += size
        self.progress(self.drawn, max(self.to_draw, self.drawn))
        pictures: Pictures = found[stage.name].numpy()
        return pictures

    def scores(self, pictures: Pictures, captions: list[str]) -> Scores:
        """How well pictures show their captions, by the spec's metrics or CLIP."""
        features = self.scorer.main_features(pictures) if self.scorer.clip else {}
        aligned = self.scorer.text_alignment(features, captions)
        return aligned | self.scorer.caption_scores(pictures, captions)

    def see(
        self,
        count: int,
        *,
        stage: CascadeStage | None = None,
        changed: Callable[[Conditioning], Conditioning] = lambda cond: cond,
    ) -> Seen:
        """Draw pictures for the first captions, and score them.

        Args:
            count: number of captions.
            stage: with other settings; by default the model's own.
            changed: what becomes of the captions' conditioning.
        """
        scores: list[Scores] = []
        made: list[Tensor | None] = []
        real: list[Tensor | None] = []
        for batch in self.batches(count):
            pictures = self.draw(batch, stage=stage, cond=changed(batch.cond))
            scores.append(self.scores(pictures, batch.captions))
            made.append(self.scorer.main_features(pictures).get(MAIN))
            if batch.first not in self._real:
                shown = batch.real
                found = None if shown is None else self.scorer.main_features(shown).get(MAIN)
                self._real[batch.first] = found
            real.append(self._real[batch.first])
        return Seen(scores=joined(scores), features=_joined(made), real=_joined(real))

    def with_guidance(self, scale: float) -> CascadeStage:
        """The stage with another guidance scale; an interval and experts' own scales stay."""
        given = self.sampling.model_dump()
        given["guidance"] = {**given["guidance"], "scale": scale}
        return with_settings(self.stage, {name: given[name] for name in DEFAULTS})


def joined(parts: Sequence[Scores]) -> Scores:
    """Scores of all batches, in one."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if len(known) == len(parts) else None


def estimates(scores: Scores) -> dict[str, dict[str, float | int | None]]:
    """Measure → its mean over the pictures that it applies to, 95 % interval and their number.

    Bounds that are infinite, as those of one picture, are None.
    """
    found: dict[str, dict[str, float | int | None]] = {}
    for name, values in scores.items():
        applicable = values if lower_is_better(name) else values[~values.isnan()]
        if len(applicable):
            found[name] = estimate_json(Estimate.of(applicable))
    return found


def estimate_json(of: Estimate) -> dict[str, float | int | None]:
    """An estimate as JSON."""
    bounds = {"low": finite(of.low), "high": finite(of.high)}
    return {"value": finite(of.mean), **bounds, "pictures": of.count}


def flat(measures: Mapping[str, Mapping[str, Any]], prefix: str) -> dict[str, float]:
    """The finite values of :func:`estimates` as metrics, with a prefix."""
    values = {name: one["value"] for name, one in measures.items()}
    return {f"{prefix}{name}": value for name, value in values.items() if value is not None}
