"""Which of two ensembles is the better one, and how often anew is tried: the rules of a spec."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.strict import Strict

LARGER_IS_BETTER = {
    "val_loss": False,
    "frechet_distance": False,
    "clip_score": True,
    "alignment": True,
}


class Promotion(Strict):
    """When a new ensemble becomes champion: better on some stage, worse on none."""

    metric: Literal["val_loss", "frechet_distance", "clip_score", "alignment"] = "val_loss"
    """Of every stage, on the validation data. ``val_loss`` is compared draw by draw, with a
    confidence interval; the others have one number each."""

    margin: float = Field(0.0, ge=0)
    """What a difference must exceed, in parts of the champion's: 0.01 is a hundredth."""


class Retraining(Strict):
    """How ``ediffi retrain`` goes on from the champion with new data."""

    share: float = Field(0.25, gt=0, le=1)
    """Of the images that an expert was trained on, rounded up to whole batches."""

    new_shards: int = Field(1, ge=1)
    """With fewer source files that the champion has not seen it is not worth the while."""
