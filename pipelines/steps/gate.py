"""Decides whether a new ensemble is better than the champion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipelines.nodes.judges import BEFORE
from pipelines.steps import scores
from pipelines.steps.context import Context, Result

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
    own, champions = (scores.read(ctx.store, inputs[role]) for role in (mine, theirs))
    try:
        gain = scores.gain(own, champions, metric)
    except ValueError as error:
        raise ValueError(f"`promotion.metric: {metric}`: {error}") from None
    values = [scores.summary({metric: of[metric]})[metric] for of in (own, champions)]
    margin = rule["margin"] * abs(values[1])
    return {
        "candidate": values[0],
        "champion": values[1],
        "gain": gain.mean,
        "low": gain.low - margin,
        "high": gain.high + margin,
    }


def _written(
    ctx: Context, settings: dict[str, Any], rows: list[dict[str, Any]], wins: bool, why: str
) -> Result:
    decision = {"wins": wins, "why": why, "champion": settings["champion"], "compared": rows}
    ctx.store.write(f"{ctx.folder}/{DECISION}", json.dumps(decision, indent=1).encode())
    ctx.report(message=why)
    metrics = {f"gain/{row['on']}": row["gain"] for row in rows}
    return Result(files=[DECISION], metrics={"wins": float(wins), **metrics}, info=decision)
