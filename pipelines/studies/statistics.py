"""How much better one model is than another: paired gains over seeds and pictures.

A gain has two sources of chance. Another seed trains another pair of models, and other validation
pictures would have measured them otherwise. Every seed is measured on the same pictures, so seeds
and pictures are crossed, and neither may be taken for independent repetitions of the other. Two
intervals are computed:

- *over seeds*: Student's t of the seeds' mean gains. It is exact for few seeds, and blind to the
  choice of pictures, whose effect is the same in all seeds.
- *over both*: from the standard error by the two-way cluster bootstrap, which resamples seeds and
  pictures (the pigeonhole bootstrap: Owen, 2007, "The pigeonhole bootstrap", Annals of Applied
  Statistics 1(2)). It sees both, and is too narrow for few seeds.

The wider one is reported, and p-values are the larger of the two in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipelines.evaluation.scores import lower_is_better
from pipelines.spec.study import Comparison
from pipelines.studies.results import Results, Values

ROUNDS = 4000
"""Rounds of the bootstrap: its standard error is within about 1 % of that of endless rounds."""

ENOUGH_SEEDS = 5
"""With fewer seeds, a result is marked: Student's t is exact for normal gains alone."""

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The gain of one model over another, above 0 where it is better."""

    measure: str
    seeds: tuple[str, ...]
    """Seeds in which both models were measured."""

    pictures: int
    """Validation pictures that the measure applies to."""

    gains: tuple[float, ...]
    """Mean gain of each seed, over its pictures."""

    mine: float
    """Mean value of the model itself."""

    theirs: float
    """Mean value of the model that it is compared with."""

    draws: NDArray[np.float64] = field(repr=False, compare=False)
    """Mean gain in each round of the two-way bootstrap. Effects with equally many seeds and
    pictures share their resamples, round by round. [ROUNDS]"""

    @property
    def mean(self) -> float:
        """Mean gain over seeds and pictures."""
        return float(np.mean(self.gains))

    @property
    def error_over_seeds(self) -> float:
        """Standard error of the mean gain, from the spread of the seeds; NaN for one seed."""
        n = len(self.gains)
        return float(np.std(self.gains, ddof=1)) / math.sqrt(n) if n > 1 else math.nan

    @property
    def error_over_both(self) -> float:
        """Standard error of the mean gain by the two-way bootstrap over seeds and pictures."""
        return float(np.std(self.draws))

    @property
    def over_seeds(self) -> Interval | None:
        """95 % interval by Student's t of the seeds' gains; None for one seed."""
        if len(self.gains) < 2:
            return None
        half = float(stats.t.ppf(0.975, len(self.gains) - 1)) * self.error_over_seeds
        return self.mean - half, self.mean + half

    @property
    def over_both(self) -> Interval | None:
        """95 % interval by the two-way bootstrap's standard error; None for one seed."""
        if len(self.gains) < 2:
            return None
        half = float(stats.norm.ppf(0.975)) * self.error_over_both
        return self.mean - half, self.mean + half

    @property
    def interval(self) -> Interval | None:
        """The reported 95 % interval, the wider of both; None for one seed."""
        if self.over_seeds is None or self.over_both is None:
            return None
        return max(self.over_seeds, self.over_both, key=lambda interval: interval[1] - interval[0])

    @property
    def p(self) -> float:
        """Two-sided p-value of no gain; 1 for one seed."""
        return min(1.0, 2 * min(self.p_above(0), self.p_below(0)))

    def p_above(self, bound: float) -> float:
        """One-sided p-value that the gain is above a bound: small if it is; 1 for one seed."""
        return self._p_positive(self.mean - bound)

    def p_below(self, bound: float) -> float:
        """One-sided p-value that the gain is below a bound: small if it is; 1 for one seed."""
        return self._p_positive(bound - self.mean)

    def _p_positive(self, excess: float) -> float:
        n = len(self.gains)
        if n < 2:
            return 1.0
        return max(
            float(stats.t.sf(_ratio(excess, self.error_over_seeds), n - 1)),
            float(stats.norm.sf(_ratio(excess, self.error_over_both))),
        )

    @property
    def relative(self) -> float | None:
        """Mean gain in percent of the value of ``theirs``; None unless that is above 0."""
        return 100 * self.mean / self.theirs if self.theirs > 0 else None

    @property
    def relative_interval(self) -> Interval | None:
        """Reported interval in percent of the value of ``theirs``, which is taken as known."""
        if self.interval is None or self.theirs <= 0:
            return None
        low, high = self.interval
        return 100 * low / self.theirs, 100 * high / self.theirs

    @property
    def standardised(self) -> float | None:
        """Mean gain in standard deviations between seeds: Cohen's d of paired differences with
        Hedges' exact correction for few seeds. None for fewer than 3 seeds, or without spread."""
        dof = len(self.gains) - 1
        spread = float(np.std(self.gains, ddof=1)) if dof > 1 else 0.0
        if not spread:
            return None
        log = math.lgamma(dof / 2) - math.lgamma((dof - 1) / 2)
        return self.mean / spread * math.exp(log) / math.sqrt(dof / 2)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know about the numbers."""
        n = len(self.seeds)
        if n == 1:
            return ("one seed: no interval",)
        return (f"only {n} seeds",) if n < ENOUGH_SEEDS else ()


def _ratio(value: float, error: float) -> float:
    """Value in standard errors; infinite without any error, but 0 for 0."""
    if error:
        return value / error
    return math.copysign(math.inf, value) if value else 0.0


def effect(
    results: Results, comparison: Comparison, place: Mapping[str, str | int] | None = None
) -> Effect:
    """Gain of a comparison's ``mine`` over its ``theirs``, in the seeds that have both.

    Args:
        results: The finished cells.
        comparison: The models and the measure.
        place: Axis → value, in which it differs from the comparison's ``at``.

    Raises:
        ValueError: No seed has both; or the measure is missing, not finite, or was measured on
            other pictures in one of them.
    """
    where = results.study.place(comparison.at, place or {})
    mine = results.models(comparison.mine, where)
    theirs = results.models(comparison.theirs, where)
    seeds = [s for s in mine if s in theirs]
    if not seeds:
        raise ValueError("no seed has results of both models")
    for group in (*(mine[s] for s in seeds), *(theirs[s] for s in seeds)):
        if comparison.measure not in group.scores:
            names = ", ".join(sorted(group.scores)) or "nothing"
            raise ValueError(f"{comparison.measure} was not measured, only {names}")
    return effect_of(
        {s: mine[s].scores[comparison.measure] for s in seeds},
        {s: theirs[s].scores[comparison.measure] for s in seeds},
        comparison.measure,
    )


def effect_of(mine: Mapping[str, Values], theirs: Mapping[str, Values], measure: str) -> Effect:
    """Gain by values per picture.

    Args:
        mine: Seed → one value per picture, NaN where the measure does not apply. [N] each
        theirs: The same of the model to compare with, for the same seeds.
        measure: Name of the measure, which says whether less is better.

    Raises:
        ValueError: A value is missing in one model only, is not finite, or the numbers of pictures
            differ.
    """
    shapes = {np.shape(v) for values in (mine, theirs) for v in values.values()}
    if len(shapes) != 1:
        counts = ", ".join(str(n) for n in sorted({shape[0] for shape in shapes}))
        raise ValueError(f"{measure} was measured on different numbers of pictures: {counts}")
    seeds = tuple(mine)
    a = np.stack([mine[s] for s in seeds]).astype(np.float64)  # [S, N]
    b = np.stack([theirs[s] for s in seeds]).astype(np.float64)
    applies = ~np.isnan(a)
    for i, seed in enumerate(seeds):
        if (np.isnan(a[i]) != np.isnan(b[i])).any() or not applies[i].any():
            raise ValueError(f"{measure} is not a number for some pictures of seed {seed}")
        if not np.isfinite([a[i, applies[i]], b[i, applies[i]]]).all():
            raise ValueError(f"{measure} is infinite for some pictures of seed {seed}")
    used = applies.any(axis=0)
    a, b, applies = a[:, used], b[:, used], applies[:, used]
    gain = b - a if lower_is_better(measure) else a - b
    return Effect(
        measure=measure,
        seeds=seeds,
        pictures=int(used.sum()),
        gains=tuple(np.nanmean(gain, axis=1).tolist()),
        mine=float(np.nanmean(a, axis=1).mean()),
        theirs=float(np.nanmean(b, axis=1).mean()),
        draws=_bootstrap(np.where(applies, gain, 0.0), applies),
    )


def _bootstrap(gain: Values, applies: NDArray[np.bool_]) -> Values:
    """Mean gain in each round, of resampled seeds and pictures. [S, N] → [ROUNDS]"""
    seeds, pictures = gain.shape
    total = _resampled_sums(gain, pictures)
    if applies.all():
        means = total / pictures
    else:  # a round without any picture counts as no gain
        means = total / np.maximum(_resampled_sums(applies.astype(np.float64), pictures), 1)
    found: Values = (means * _resamples("seeds", seeds)).sum(axis=1) / seeds
    return found


def _resampled_sums(values: Values, pictures: int) -> Values:
    """Sum over each round's pictures. [S, N] → [ROUNDS, S]"""
    counts = _resamples("pictures", pictures)
    step = max(1, 2**21 // pictures)  # rounds at once: 16 MB as float64
    return np.concatenate(
        [counts[i : i + step].astype(np.float64) @ values.T for i in range(0, ROUNDS, step)]
    )


@lru_cache(maxsize=8)
def _resamples(of: Literal["seeds", "pictures"], n: int) -> NDArray[np.uint16]:
    """How often each of ``n`` is in each round's resample with replacement. [ROUNDS, n]"""
    random = np.random.default_rng([n, ("seeds", "pictures").index(of)])
    found = np.empty((ROUNDS, n), dtype=np.uint16)
    for row in found:
        row[:] = np.bincount(random.integers(n, size=n), minlength=n)
    return found
