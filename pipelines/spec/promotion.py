"""Which of two ensembles is the better one, and how often anew is tried: the rules of a spec."""

from __future__ import annotations

from pydantic import Field, field_validator

from pipelines.spec.base import Strict


class Promotion(Strict):
    """When a new ensemble becomes champion: better on some stage, worse on none.

    By ``val_loss`` it is better over p(σ) or over the sampler's steps, and worse neither over these
    nor in the interval of any expert, its own or the champion's.
    """

    metric: str = "val_loss"
    """Of every stage, on the validation data, compared draw by draw or picture by picture, with a
    confidence interval: ``val_loss``, ``kernel_distance``, ``clip_score`` (with ``evaluate.clip``),
    or a measure of one of ``evaluate.metrics``, such as the demo's ``concepts``."""

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
    """What a difference must exceed, in parts of the champion's: 0.01 is a hundredth."""


class Retraining(Strict):
    """How ``ediffi retrain`` goes on from the champion with new data."""

    share: float = Field(0.25, gt=0, le=1)
    """Of the images that an expert was trained on, rounded up to whole batches."""

    new_shards: int = Field(1, ge=1)
    """With fewer source files that the champion has not seen it is not worth the while."""
