"""What a study's claims come to: supported, refuted or open.

A claim is made once for each combination of the values of its ``each``. p-values are corrected by
Holm's method for the number of all claims that the study makes, those included whose cells are not
finished: otherwise a claim could be supported today and open tomorrow for no reason of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from pipelines.formatting import join_words
from pipelines.spec.study import SEED, Claim, Comparison, Study
from pipelines.studies.results import Results
from pipelines.studies.statistics import Effect, Interval, effect

ALPHA = 0.05
"""Probability that any claim of a study is decided wrongly."""

Verdict = Literal["supported", "refuted", "open"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one claim comes to, for one combination of its ``each``."""

    name: str
    """Name of the claim in the study."""

    at: Mapping[str, str]
    """Axis → value, of the axes in ``each``."""

    sentence: str
    """What is claimed."""

    holds: Literal["better", "worse", "equivalent"]

    verdict: Verdict = "open"

    reason: str = ""
    """Why it is open."""

    effect: Effect | None = None
    """The measured gain, as far as there are results."""

    margin: float | None = None
    """For ``equivalent``: the largest difference that counts as none, in units of the measure."""

    p: float | None = None
    """p-value of the decision before correction; None where cells or seeds are missing."""

    p_adjusted: float | None = None
    """p-value after Holm's correction: what the verdict goes by."""


def find(results: Results) -> list[Finding]:
    """Decide all claims of a study, in its order."""
    made = [
        _measured(results, name, claim, at)
        for name, claim in results.study.claims.items()
        for at in results.study.combinations(claim.each)
    ]
    adjusted = holm([1.0 if finding.p is None else finding.p for finding in made])
    return [_decided(finding, p, len(made)) for finding, p in zip(made, adjusted)]


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down method, in the given order."""
    adjusted, least = [1.0] * len(p), 0.0
    for rank, i in enumerate(np.argsort(p, kind="stable").tolist()):
        least = adjusted[i] = max(least, min(1.0, (len(p) - rank) * p[i]))
    return adjusted


def _measured(results: Results, name: str, claim: Claim, at: Mapping[str, str]) -> Finding:
    """The claim with its effect and p-value, or with the reason why there is none."""
    says, where = claim.says, results.study.place(claim.at, at)
    for axis, value in where.items():
        says = says.replace(f"{{{axis}}}", value)
    unsaid = [f"{axis} {value}" for axis, value in at.items() if f"{{{axis}}}" not in claim.says]
    sentence = f"{says} ({', '.join(unsaid)})" if unsaid else says
    bare = Finding(name=name, at=at, sentence=sentence, holds=claim.holds)
    reason = missing(results, claim, at)
    try:
        found = effect(results, claim, at)
    except ValueError as error:
        return replace(bare, reason=reason or str(error))
    bare = replace(bare, effect=found)
    if reason:
        return replace(bare, reason=reason)
    if len(found.seeds) < 2:
        return replace(bare, reason="one seed says nothing of others; it needs at least 2")
    if claim.margin is None:
        return replace(bare, p=found.p)
    if found.theirs <= 0:
        return replace(bare, reason="a margin is a share of a value above 0, and theirs is not")
    margin = claim.margin * found.theirs
    p = min(_p_within(found, margin), _p_outside(found, margin))
    return replace(bare, margin=margin, p=p)


def _p_within(found: Effect, margin: float) -> float:
    """p-value that the gain is within ± margin: two one-sided tests (Schuirmann, 1987)."""
    return max(found.p_above(-margin), found.p_below(margin))


def _p_outside(found: Effect, margin: float) -> float:
    """p-value that the gain is outside ± margin, on either side."""
    return min(1.0, 2 * min(found.p_above(margin), found.p_below(-margin)))


def _decided(finding: Finding, p_adjusted: float, claims: int) -> Finding:
    """The claim with its verdict."""
    found, p = finding.effect, finding.p
    if found is None or p is None:
        return finding
    finding = replace(finding, p_adjusted=p_adjusted)
    if p_adjusted >= ALPHA:
        alone = p < ALPHA
        reason = f"significant alone, but not among {claims} claims" if alone else "not significant"
        return replace(finding, reason=reason)
    if finding.margin is not None:
        holds = _p_within(found, finding.margin) < _p_outside(found, finding.margin)
    else:
        holds = (found.mean > 0) == (finding.holds == "better")
    return replace(finding, verdict="supported" if holds else "refuted")


def missing(results: Results, comparison: Comparison, at: Mapping[str, str | int]) -> str:
    """What a comparison lacks of the results that the study will have; empty if nothing."""
    study = results.study
    where = study.place(comparison.at, at)
    models = (comparison.mine, comparison.theirs)
    places = [study.place(where, model.at) for model in models]
    planned = [seeds_planned(study, place) for place in places]
    for place, seeds in zip(places, planned):
        if not seeds:
            return f"no experiment makes the cells of {named(study, place)}"
    both = [seed for seed in planned[0] if seed in planned[1]]
    if not both:
        return "no experiment makes the cells of both models with the same seed"
    for model, place in zip(models, places):
        cells, groups = results.at(place), results.models(model, place)
        if absent := [seed for seed in both if seed not in cells]:
            word = "seed" if len(absent) == 1 else "seeds"
            return f"{word} {join_words(absent, 'and')} of {named(study, place)} not finished"
        if absent := [seed for seed in both if seed not in groups]:
            cell = cells[absent[0]]
            return f"{cell.name} has no {model.group}, only {join_words(list(cell.groups), 'and')}"
    return ""


def named(study: Study, place: Mapping[str, str]) -> str:
    """A place in words: its values that are not the first of their axis; else ``the base``."""
    other = [f"{a} {v}" for a, v in place.items() if a != SEED and v != study.values(a)[0]]
    return ", ".join(other) or "the base"


def seeds_planned(study: Study, place: Mapping[str, str]) -> list[str]:
    """Seeds in which any experiment makes the cell at a place."""
    made = [
        values[SEED]
        for values in map(study.axes_of, study.experiments.values())
        if all(value in values[axis] for axis, value in place.items() if axis != SEED)
    ]
    return [seed for seed in study.values(SEED) if any(seed in seeds for seeds in made)]


# -- as text and as data ---------------------------------------------------------------------------


def text(found: Sequence[Finding]) -> str:
    """A line per claim: verdict, sentence, and what was measured."""
    return "\n".join(f"{f.verdict:<9}  {f.sentence.rstrip('.')}: {measured(f)}" for f in found)


def measured(finding: Finding) -> str:
    """What was measured, in one line: gain, interval, seeds and pictures, p, and why it is open."""
    parts = [summary(finding.effect)] if finding.effect else []
    if finding.margin is not None:
        parts.append(f"margin ±{finding.margin:.2g}")
    if finding.p_adjusted is not None:
        tiny = finding.p_adjusted < 1e-4
        parts.append("adjusted p " + ("< 0.0001" if tiny else f"{finding.p_adjusted:.2g}"))
    notes = finding.effect.notes if finding.effect and finding.p is not None else ()
    return "; ".join([*parts, *notes, *([finding.reason] if finding.reason else [])])


def summary(found: Effect) -> str:
    """A gain in one line: ``+0.0080 [+0.0065, +0.0095], +2.5 %, 5 seeds × 256 pictures``."""
    digits = _digits(found)
    number = f"{found.mean:+.{digits}f}"
    if found.interval:
        number += f" [{found.interval[0]:+.{digits}f}, {found.interval[1]:+.{digits}f}]"
    parts = [number] if found.relative is None else [number, f"{found.relative:+.1f} %"]
    n = len(found.seeds)
    return ", ".join([*parts, f"{n} seed{'s' * (n > 1)} × {found.pictures:,} pictures"])


def _digits(found: Effect) -> int:
    """Decimals that show two digits of the interval's half width."""
    low, high = found.interval or (0.0, 2 * abs(found.mean))
    half = (high - low) / 2
    return int(np.clip(1 - np.floor(np.log10(half)), 0, 9)) if half > 0 else 4


def data(found: Sequence[Finding]) -> list[dict[str, Any]]:
    """The claims as JSON values, in order."""
    return [
        {
            "claim": f.name,
            "at": dict(f.at),
            "says": f.sentence,
            "holds": f.holds,
            "verdict": f.verdict,
            "reason": f.reason,
            "margin": f.margin,
            "p": f.p,
            "p_adjusted": f.p_adjusted,
            "effect": None if f.effect is None else effect_data(f.effect),
        }
        for f in found
    ]


def effect_data(found: Effect) -> dict[str, Any]:
    """A gain as JSON values."""
    return {
        "measure": found.measure,
        "gain": found.mean,
        "interval": _pair(found.interval),
        "interval_over_seeds": _pair(found.over_seeds),
        "interval_over_both": _pair(found.over_both),
        "relative_percent": found.relative,
        "relative_percent_interval": _pair(found.relative_interval),
        "standardised": found.standardised,
        "p": found.p,
        "mine": found.mine,
        "theirs": found.theirs,
        "seeds": list(found.seeds),
        "gains": list(found.gains),
        "pictures": found.pictures,
        "notes": list(found.notes),
    }


def _pair(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)
