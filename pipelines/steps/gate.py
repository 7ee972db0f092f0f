"""Decides whether a new ensemble is better than the champion."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch

from ediffi_core.metrics import paired_gain
from pipelines.judging import LARGER_IS_BETTER
from pipelines.nodes.judges import BEFORE
from pipelines.steps.context import Context, Result
from pipelines.steps.evaluate import LOSSES

DECISION = "decision.json"


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    """Roles of the inputs are ``ensemble/<stage>`` and ``champion/<stage>``, and ``…-before``."""
    rule = settings["rule"]
    rows: list[dict[str, Any]] = []
    strange = {m["info"].get("strange") for m in ctx.manifests.values()} - {None}
    if strange:
        return _written(ctx, settings, rows, False, strange.pop())
    for role in sorted(r for r in inputs if r.startswith("ensemble")):
        other = role.replace("ensemble", "champion", 1)
        group, _, stage = role.partition("/")
        on = stage + (" on the champion's data" if group.endswith(BEFORE) else "")
        rows.append({"on": on, **_compared(ctx, inputs, role, other, rule)})
    return _written(ctx, settings, rows, *verdict(rows, rule["metric"]))


def verdict(rows: list[dict[str, Any]], metric: str) -> tuple[bool, str]:
    """Whether it wins, and why, in words."""
    worse = [row for row in rows if row["high"] < 0]
    better = [row for row in rows if row["low"] > 0]
    if worse or not better:
        shown, word = (worse[0], "worse") if worse else (rows[0], "no better")
        return False, f"{metric} of {shown['on']} is {word} than the champion's: {_numbers(shown)}"
    return (
        True,
        f"{metric} of {better[0]['on']} is better than the champion's: {_numbers(better[0])}",
    )


def _numbers(row: Mapping[str, Any]) -> str:
    return f"{row['candidate']:.4f} against {row['champion']:.4f}"


def _compared(
    ctx: Context, inputs: Mapping[str, str], mine: str, theirs: str, rule: Mapping[str, Any]
) -> dict[str, float]:
    """What is gained over the champion, more being better, with its bounds less the margin."""
    metric = rule["metric"]
    values = [ctx.manifests[role]["metrics"].get(metric, math.nan) for role in (mine, theirs)]
    if any(math.isnan(v) for v in values):
        raise ValueError(
            f"`promotion.metric: {metric}` was not measured here; choose another, such as val_loss"
        )
    margin = rule["margin"] * abs(values[1])
    if metric == "val_loss":
        losses = [_losses(ctx, inputs[role]) for role in (mine, theirs)]
        gain = paired_gain(losses[1], losses[0])
        mean, low, high = gain.mean, gain.low, gain.high
    else:
        mean = (values[0] - values[1]) * (1 if LARGER_IS_BETTER[metric] else -1)
        low = high = mean
    return {
        "candidate": values[0],
        "champion": values[1],
        "gain": mean,
        "low": low - margin,
        "high": high + margin,
    }


def _losses(ctx: Context, folder: str) -> torch.Tensor:
    found = ctx.store.read_json(f"{folder}/{LOSSES}")
    if found is None:
        raise ValueError(
            f"{ctx.store.full(folder)} has lost its {LOSSES}; remove it, and run again"
        )
    return torch.tensor(found, dtype=torch.float64)


def _written(
    ctx: Context, settings: dict[str, Any], rows: list[dict[str, Any]], wins: bool, why: str
) -> Result:
    decision = {"wins": wins, "why": why, "champion": settings["champion"], "compared": rows}
    ctx.store.write(f"{ctx.folder}/{DECISION}", json.dumps(decision, indent=1).encode())
    ctx.report(message=why)
    metrics = {f"gain/{row['on']}": row["gain"] for row in rows}
    return Result(files=[DECISION], metrics={"wins": float(wins), **metrics}, info=decision)
