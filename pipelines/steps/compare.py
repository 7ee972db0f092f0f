"""Compare a stage's ensemble with the single model that got the whole tree's budget."""

from __future__ import annotations

from typing import Any

from pipelines.evaluation import losses, scores
from pipelines.runs.context import Context, Result


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    """Compute the ensemble's gain in every measure, on the same draws; above 0 is better.

    Raises:
        ValueError: The losses of the two were measured differently.
    """
    both = [losses.read(ctx.store, inputs[role]) for role in ("ensemble", "single")]
    if why := losses.mismatch(*both):
        raise ValueError(
            f"the losses of the ensemble and of the single model were measured differently: {why}; "
            "remove both evaluations, and run again"
        )
    mine, theirs = (scores.read(ctx.store, inputs[role]) for role in ("ensemble", "single"))
    metrics: dict[str, float] = {}
    for measure in scores.shared_measures(mine, theirs):
        gain = scores.gain(mine, theirs, measure)
        metrics |= {
            f"gain/{measure}": gain.mean,
            f"gain/{measure}_low": gain.low,
            f"gain/{measure}_high": gain.high,
            f"gain/{measure}_pictures": gain.count,
        }
    return Result(files=[], metrics=metrics)
