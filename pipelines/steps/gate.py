"""Decide whether a candidate ensemble is better than the champion."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ediffi_core.metrics import Estimate
from ediffi_core.noise import sigma_text
from pipelines.dag.evaluation import BEFORE
from pipelines.evaluation import losses, scores
from pipelines.evaluation.losses import OVER_NOISE, OVER_STEPS
from pipelines.runs.context import Context, Result

DECISION = "decision.json"

ROUNDING = 1e-5
"""Relative differences below this count as rounding. Float32 rounding depends on how draws are
batched and routed, and would otherwise decide between a model and itself."""

Row = dict[str, Any]


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    """Compare candidate and champion.

    Roles of the inputs: ``ensemble/<stage>`` and ``champion/<stage>`` on the new validation data;
    ``ensemble-before/<stage>`` and ``champion-before/<stage>`` on the champion's.
    """
    rule = settings["rule"]
    strange = {m["info"].get("strange") for m in ctx.manifests.values()} - {None}
    if strange:
        return _write_decision(ctx, settings, [], False, strange.pop())
    pairs: list[tuple[Row, Tensor, Tensor]] = []
    for role in sorted(r for r in inputs if r.startswith("ensemble")):
        other = role.replace("ensemble", "champion", 1)
        group, _, stage = role.partition("/")
        on = stage + (" on the champion's data" if group.endswith(BEFORE) else "")
        of = loss_pairs if rule["metric"] == OVER_NOISE else score_pairs
        # An MLflow metric name, which allows no apostrophe and no σ.
        name = f"gain/{stage}{BEFORE if group.endswith(BEFORE) else ''}"
        try:
            for row, mine, theirs in of(ctx, inputs[role], inputs[other], on, rule["metric"]):
                part = row.pop("part")
                row["metric"] = f"{name}/{part}" if part else name
                pairs.append((row, mine, theirs))
        except NotComparable as why:
            return _write_decision(ctx, settings, [], False, str(why))
    rows = [row | gain_row(mine, theirs, rule, len(pairs)) for row, mine, theirs in pairs]
    return _write_decision(ctx, settings, rows, *decide_winner(rows, rule["metric"]))


class NotComparable(ValueError):
    """Two evaluations were measured differently; the message says how."""


def decide_winner(rows: list[Row], metric: str) -> tuple[bool, str]:
    """Whether the candidate wins, and why: it must be better on some whole stage and worse nowhere.

    The confidence intervals hold jointly at 95 %, so that among many experts, none counts as worse
    by chance. NaN, such as the loss of a diverged model, counts as worse.
    """
    worse = [row for row in rows if not row["high"] >= 0]
    better = [row for row in rows if row["whole"] and row["low"] > 0]
    wins = bool(better and not worse)
    shown = (worse or better or rows)[0]
    verdict = "worse" if worse else "better" if better else "no better"
    return wins, f"{metric} of {shown['on']} is {verdict} than the champion's: {_describe(shown)}"


def _describe(row: Row) -> str:
    draws = f"{row['draws']:,} draws of " if "draws" in row else ""
    return (
        f"{row['candidate']:.4f} against {row['champion']:.4f} (gain {row['gain']:+.4f} "
        f"[{row['low']:+.4f}, {row['high']:+.4f}], {draws}{row['pictures']:,} pictures)"
    )


def loss_pairs(
    ctx: Context, mine: str, theirs: str, on: str, metric: str
) -> Iterator[tuple[Row, Tensor, Tensor]]:
    """Losses over p(σ), over the sampler's steps, and in the interval of each expert of either.

    Yields:
        A row that says what is compared, and the candidate's and champion's losses per picture.

    Raises:
        Unlike: The losses were measured differently.
    """
    own, champions = (losses.read(ctx.store, folder) for folder in (mine, theirs))
    if why := losses.mismatch(own, champions):
        raise NotComparable(
            f"{OVER_NOISE} of {on} was measured differently for the two ({why}); remove both "
            "evaluations, and run again"
        )
    everywhere = {OVER_NOISE: (on, ""), OVER_STEPS: (f"{on} over the sampler's steps", "sampler")}
    for measure, (where, part) in everywhere.items():
        row = {"on": where, "part": part, "whole": True, "draws": len(own.loss)}
        yield row, own.over(measure), champions.over(measure)
    for name, bounds in losses.intervals(own, champions):
        where = f"{on} in the interval of {name} ({sigma_text(*bounds)})"
        count = int(own.inside(bounds).sum())
        row = {"on": where, "part": name, "whole": False, "draws": count}
        yield row, own.within(bounds), champions.within(bounds)


def score_pairs(
    ctx: Context, mine: str, theirs: str, on: str, metric: str
) -> Iterator[tuple[Row, Tensor, Tensor]]:
    """Scores of pictures drawn with all experts; yields one row, as :func:`loss_pairs` does.

    Raises:
        ValueError: The metric was not measured, or applies to no picture.
    """
    own, champions = (scores.read(ctx.store, folder) for folder in (mine, theirs))
    try:
        pair = scores.paired(own, champions, metric)
    except ValueError as error:
        raise ValueError(f"`promotion.metric: {metric}`: {error}") from None
    if not len(pair[0]):
        raise ValueError(
            f"`promotion.metric: {metric}` applies to no picture of {on}; choose another metric, "
            "or validation data whose captions ask for it"
        )
    yield {"on": on, "part": "", "whole": True}, *pair


def gain_row(mine: Tensor, theirs: Tensor, rule: Mapping[str, Any], comparisons: int) -> Row:
    """The candidate's gain over the champion; above 0 is better.

    Args:
        mine: The candidate's values per picture. [N]
        theirs: The champion's, paired with them. [N]
        rule: The promotion rule: ``metric`` and ``margin``.
        comparisons: Number of comparisons in the decision, whose intervals hold jointly.

    Returns:
        Means, gain, and its bounds ``low`` and ``high``, widened by the margin.
    """
    gain = scores.gain_of(mine, theirs, rule["metric"], comparisons)
    candidate, champion = Estimate.of(mine).mean, Estimate.of(theirs).mean
    margin = max(rule["margin"], ROUNDING) * abs(champion)
    return {
        "candidate": candidate,
        "champion": champion,
        "gain": gain.mean,
        "low": gain.low - margin,
        "high": gain.high + margin,
        "pictures": gain.count,
    }


def _write_decision(
    ctx: Context, settings: dict[str, Any], rows: list[Row], wins: bool, why: str
) -> Result:
    compared = [{key: json_safe(value) for key, value in row.items()} for row in rows]
    decision = {"wins": wins, "why": why, "champion": settings["champion"], "compared": compared}
    ctx.store.write(f"{ctx.folder}/{DECISION}", json.dumps(decision, indent=1).encode())
    ctx.report(message=why)
    metrics = {row["metric"]: row["gain"] for row in rows}
    return Result(files=[DECISION], metrics={"wins": float(wins), **metrics}, info=decision)


def json_safe(value: Any) -> Any:
    """Replace NaN and infinity by None, as JSON has neither."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
