"""Compares a stage's ensemble with the single model that had the whole tree's budget."""

from __future__ import annotations

from typing import Any

from pipelines.steps import scores
from pipelines.steps.context import Context, Result


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    """Measure by measure, on the same draws: what the ensemble gains, above 0 is better."""
    mine, theirs = (scores.read(ctx.store, inputs[role]) for role in ("ensemble", "single"))
    metrics: dict[str, float] = {}
    for measure in scores.comparable(mine, theirs):
        gain = scores.gain(mine, theirs, measure)
        metrics |= {
            f"gain/{measure}": gain.mean,
            f"gain/{measure}_low": gain.low,
            f"gain/{measure}_high": gain.high,
        }
    return Result(files=[], metrics=metrics)
