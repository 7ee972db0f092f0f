"""The quantiles of the normal distribution in plain Python, for plans and reports without torch."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

# Numerators and denominators of the rational approximations of Φ⁻¹ in Cephes' ndtri, highest power
# first: around the median, and of the tails in 1/x with x = √(−2 ln q) below and above 8.
_CENTRE = (
    (
        -5.99633501014107895267e1,
        9.80010754185999661536e1,
        -5.66762857469070293439e1,
        1.39312609387279679503e1,
        -1.23916583867381258016e0,
    ),
    (
        1.0,
        1.95448858338141759834e0,
        4.67627912898881538453e0,
        8.63602421390890590575e1,
        -2.25462687854119370527e2,
        2.00260212380060660359e2,
        -8.20372256168333339912e1,
        1.59056225126211695515e1,
        -1.18331621121330003142e0,
    ),
)
_TAIL = (
    (
        4.05544892305962419923e0,
        3.15251094599893866154e1,
        5.71628192246421288162e1,
        4.40805073893200834700e1,
        1.46849561928858024014e1,
        2.18663306850790267539e0,
        -1.40256079171354495875e-1,
        -3.50424626827848203418e-2,
        -8.57456785154685413611e-4,
    ),
    (
        1.0,
        1.57799883256466749731e1,
        4.53907635128879210584e1,
        4.13172038254672030440e1,
        1.50425385692907503408e1,
        2.50464946208309415979e0,
        -1.42182922854787788574e-1,
        -3.80806407691578277194e-2,
        -9.33259480895457427372e-4,
    ),
)
_FAR_TAIL = (
    (
        3.23774891776946035970e0,
        6.91522889068984211695e0,
        3.93881025292474443415e0,
        1.33303460815807542389e0,
        2.01485389549179081538e-1,
        1.23716634817820021358e-2,
        3.01581553508235416007e-4,
        2.65806974686737550832e-6,
        6.23974539184983293730e-9,
    ),
    (
        1.0,
        6.02427039364742014255e0,
        3.67983563856160859403e0,
        1.37702099489081330271e0,
        2.16236993594496635890e-1,
        1.34204006088543189037e-2,
        3.28014464682127739104e-4,
        2.89247864745380683936e-6,
        6.79019408009981274425e-9,
    ),
)


@lru_cache(maxsize=4096)
def normal_quantile(q: float) -> float:
    """Φ⁻¹(q) of the standard normal distribution; −∞ at 0 and ∞ at 1.

    The algorithm of ``torch.special.ndtri`` (Cephes) with the same roundings, so that an interval's
    bounds are the same numbers with and without torch; :class:`statistics.NormalDist` uses another
    algorithm, which differs in the last bits.

    Raises:
        ValueError: q lies outside [0, 1].
    """
    if not 0 <= q <= 1:
        raise ValueError(f"a quantile lies in [0, 1], got {q}")
    if q in (0, 1):
        return math.inf if q else -math.inf
    tail = math.exp(-2)
    below = q <= 1 - tail
    p = q if below else 1 - q
    if p > tail:
        y = p - 0.5
        return _fma(y, _fraction(_CENTRE, y * y), y) * 2.50662827463100050242  # √(2π)
    x = math.sqrt(-2 * math.log(p))
    size = x - math.log(x) / x - _fraction(_TAIL if x < 8 else _FAR_TAIL, 1 / x)
    return -size if below else size


def _fraction(polynomials: tuple[tuple[float, ...], tuple[float, ...]], x: float) -> float:
    """``x P(x) / Q(x)``, in this order of rounding."""
    above, below = polynomials
    return x * _horner(above, x) / _horner(below, x)


def _horner(coefficients: tuple[float, ...], x: float) -> float:
    value = 0.0
    for coefficient in coefficients:
        value = _fma(value, x, coefficient)
    return value


def _fma(a: float, b: float, c: float) -> float:
    """``a b + c``, rounded once, as compilers make torch do it (``math.fma`` from Python 3.13)."""
    return float(Fraction(a) * Fraction(b) + Fraction(c))
