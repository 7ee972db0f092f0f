"""The spec's ``promotion:`` and ``retraining:``: when a new ensemble becomes champion, and how an
ensemble is retrained on new data."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from pipelines.spec.base import LATER, Strict


class Promotion(Strict):
    """When a new ensemble becomes champion: it is better on at least one stage and worse on none.

    With ``val_loss``, better means a lower loss over p(σ) or over the sampler's steps. Worse means
    a higher loss over either of these, or in the interval of any expert of the two ensembles.
    """

    metric: str = "val_loss"
    """Metric to compare on every stage, with a 95 % confidence interval: ``val_loss``,
    ``kernel_distance``, ``clip_score`` (needs ``evaluate.clip``), or a score of one of
    ``evaluate.metrics``, such as ``concepts`` of the demo's. Both ensembles are measured on the
    same validation data, noise and captions."""

    @field_validator("metric")
    @classmethod
    def has_an_interval(cls, metric: str) -> str:
        if metric == "frechet_distance":
            raise ValueError(
                "a Fréchet distance is one number without an interval, and of few pictures it "
                "rewards those that are all alike; write kernel_distance"
            )
        return metric

    margin: float = Field(0.0, ge=0)
    """Minimum relative difference that counts as better or worse: 0.01 is 1 % of the champion's
    value."""


class Drift(Strict):
    """How far new data may drift from the champion's. Compared are the shards that the champion's
    data lacks with all of its data. A retraining stops before it trains if the whole 95 % interval
    of a measure lies above its limit; without limits the drift is only measured."""

    rows: int = Field(2000, ge=50)
    """Rows of each that lengths and embeddings are compared on, at most."""

    caption_lengths: float | None = Field(None, gt=0, le=1)
    """Limit of the Kolmogorov–Smirnov distance of the captions' lengths in tokens, of every text
    encoder: 0 for equal distributions, 1 for lengths that do not overlap."""

    embeddings: float | None = Field(None, gt=0, le=2)
    """Limit of the unbiased MMD² of every pooled embedding, of captions and of pictures, with a
    Gaussian kernel whose bandwidth is the median distance of the champion's."""

    quarantined: float | None = Field(None, gt=0, le=1)
    """Limit of the increase of the share of quarantined rows: 0.05 is five percentage points."""


class Retraining(Strict):
    """How ``ediffi retrain`` continues training the champion on new data."""

    share: float = Field(0.25, gt=0, le=1)
    """Images to train each expert on, as a share of those it was trained on before; rounded up to
    whole batches."""

    new_shards: int = Field(1, ge=1)
    """Minimum number of new source files. With fewer, ``ediffi retrain`` does nothing."""

    drift: Annotated[Drift | None, LATER] = None
    """Measure how far new data has drifted from the champion's, and stop where that is too far.
    By default it is not measured."""
