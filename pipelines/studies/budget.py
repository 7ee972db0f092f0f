"""Where along an axis experts begin to pay: the crossing of their gain with 0.

Between measured values, the gain is taken as linear in the logarithm of x, and as monotonic in x:
isotonic regression pools neighbours whose order contradicts it, so that chance alone makes no
further crossing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import isotonic_regression

from pipelines.studies.results import Values
from pipelines.studies.statistics import Effect

Point = tuple[float, Effect]
"""x > 0, and the gain there."""


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Where the gain changes its sign."""

    x: float
    """The crossing, within the measured range."""

    low: float | None
    """Lower end of its 95 % interval; None if that is below the smallest x measured."""

    high: float | None
    """Upper end of its 95 % interval; None if that is above the largest x measured."""

    rising: bool
    """Whether experts pay above it, not below."""


def crossing(points: Sequence[Point]) -> Crossing | None:
    """Return where the gain crosses 0, or None if it has one sign at all x.

    The interval is that of the two-way bootstrap over seeds and pictures. Resampled gains are
    stretched about the mean by the ratio of the reported interval to the bootstrap's own, which is
    too narrow for few seeds. Resamples are shared by the points, as are their pictures.

    Raises:
        ValueError: There are fewer than 2 points, x is not above 0 or twice the same, or a point
            has one seed only.
    """
    x, effects = _sorted(points)
    gains = np.array([e.mean for e in effects])
    rising = _misfit(gains) <= _misfit(-gains)
    log_x = np.log(x)
    sign = 1 if rising else -1
    found = _first_above(log_x, sign * gains)
    if not np.isfinite(found):
        return None
    draws = np.stack([_stretched(e) for e in effects], axis=1)  # [ROUNDS, points]
    crossings = [_first_above(log_x, sign * row) for row in draws]
    low, high = np.quantile(crossings, (0.025, 0.975), method="inverted_cdf").tolist()
    return Crossing(
        x=float(np.exp(found)),
        low=None if low == -np.inf else float(np.exp(min(low, log_x[-1]))),
        high=None if high == np.inf else float(np.exp(max(high, log_x[0]))),
        rising=rising,
    )


def _sorted(points: Sequence[Point]) -> tuple[Values, list[Effect]]:
    ordered = sorted(points, key=lambda point: point[0])
    x = np.array([value for value, _ in ordered], dtype=np.float64)
    if len(x) < 2 or not (x > 0).all() or not (np.diff(x) > 0).all():
        raise ValueError(
            f"a crossing needs at least two different x above 0, got {[p[0] for p in points]}"
        )
    effects = [found for _, found in ordered]
    for value, found in ordered:
        if found.interval is None:
            raise ValueError(f"a crossing needs at least 2 seeds for each x; {value:g} has one")
    return x, effects


def _misfit(gains: Values) -> float:
    """Sum of squares by which gains contradict a rise."""
    return float(((gains - isotonic_regression(gains).x) ** 2).sum())


def _first_above(log_x: Values, gains: Values) -> float:
    """Where rising gains cross 0; −inf if all are above 0, inf if none is."""
    fitted = isotonic_regression(gains).x
    above = int(np.searchsorted(fitted, 0, side="right"))  # index of the first above 0
    if above in (0, len(fitted)):
        return -np.inf if above == 0 else np.inf
    before, after = fitted[above - 1], fitted[above]
    share = -before / (after - before)
    return float(log_x[above - 1] + share * (log_x[above] - log_x[above - 1]))


def _stretched(found: Effect) -> Values:
    """The bootstrap's gains, with the spread that the reported interval stands for. [ROUNDS]"""
    assert found.interval is not None
    error = (found.interval[1] - found.interval[0]) / 2 / float(stats.norm.ppf(0.975))
    own = found.error_over_both
    stretch = error / own if own else 1.0
    draws: Values = found.mean + (found.draws - found.draws.mean()) * stretch
    return draws


def text(points: Sequence[Point], axis: str) -> str:
    """Where experts pay, as a sentence's end: ``above images 120,000 [80,000, 200,000]``."""
    found = crossing(points)
    if found is None:
        pays = sum(gain.mean for _, gain in points) > 0  # the fitted gains have one sign
        return f"at every measured {axis}" if pays else f"at no measured {axis}"
    low = f"{found.low:,.0f}" if found.low else "below all measured"
    high = f"{found.high:,.0f}" if found.high else "above all measured"
    return f"{'above' if found.rising else 'below'} {axis} {found.x:,.0f} [{low}, {high}]"
