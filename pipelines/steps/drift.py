"""Measure how far the training data has drifted from the champion's."""

from __future__ import annotations

from typing import Any

from pipelines.evaluation.drift import compare
from pipelines.runs.context import Context, Result

FILE = "drift.json"


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    """Compare the data set version ``data`` with ``before``."""
    found, counts = compare(
        ctx.store, inputs["before"], inputs["data"], rows=settings["rows"], seed=settings["seed"]
    )
    drifted = {name: one.to_json() for name, one in found.items()}
    ctx.store.write_json(f"{ctx.folder}/{FILE}", {**counts, "drifted": drifted})
    metrics = {name: one.value for name, one in found.items()}
    for end in ("low", "high"):
        metrics |= {f"{name}_{end}": of[end] for name, of in drifted.items()}
    return Result(files=[FILE], metrics=metrics, info={**counts, "drifted": drifted})
