"""The expert tree: experts' names such as E2_3, their intervals of p(σ), and complements.

Level l cuts p(σ) into 2^l equal shares (eDiff-I, section 4.1), or into 2^l parts that a
:class:`Warp` places. An ensemble picks experts of any levels; the complement ``M_C`` covers what
they leave. Does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from ediffi_core.noise import EVERYTHING, Interval

COMPLEMENT = "M_C"
ROOT = "E0_0"
_NAME = re.compile(r"E(0|[1-9][0-9]*)_(0|[1-9][0-9]*)")  # no leading zeros: names are unique


@dataclass(frozen=True)
class Warp:
    """Where a tree cuts p(σ): a rising, piecewise linear map of [0, 1] onto itself.

    An expert that has ``[i/2^l, (i+1)/2^l)`` of p(σ) in the paper has the image of that here. Names
    and parents stay as they are.
    """

    cuts: tuple[float, ...] = ()
    """The images of 1/2^d, 2/2^d, …, quantiles of p(σ). Deeper levels cut evenly between them. None
    for the paper's equal shares."""

    def __post_init__(self) -> None:
        count = len(self.cuts)
        if count & (count + 1):
            raise ValueError(
                "boundaries are the cuts of one level of the tree: 1, 3, 7, … quantiles, "
                f"not {count}"
            )
        if any(low >= high for low, high in pairwise((0.0, *self.cuts, 1.0))):
            raise ValueError(
                f"boundaries must rise from above 0 to below 1, got {list(self.cuts)}; write "
                "quantiles of p(σ), lowest noise first"
            )

    def __call__(self, share: float) -> float:
        """The quantile of p(σ) that a dyadic fraction is mapped to, rounded to 6 decimals."""
        if not self.cuts:
            return share
        knots = (0.0, *self.cuts, 1.0)
        cells = len(knots) - 1
        at = min(int(share * cells), cells - 1)
        return round(knots[at] + (knots[at + 1] - knots[at]) * (share * cells - at), 6)


EQUAL_SHARES = Warp()
"""The paper's: every expert of a level has the same share of p(σ)."""


def level_and_index(name: str) -> tuple[int, int]:
    """Parse an expert's name: ``"E2_3"`` → ``(2, 3)``.

    Returns:
        Level, and index in the level; index 0 has the LOWEST noise (eDiff-I, section 4.1).

    Raises:
        ValueError: The name is not of this form, its index is not below 2^level, or its level is
            above 50.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise ValueError(
            f"{name!r} is not an expert's name; write E<level>_<index>, as E1_0, or {COMPLEMENT}"
        )
    level, index = int(match[1]), int(match[2])
    if level > 50:
        raise ValueError(f"{name!r} is deeper than float64 can cut p(σ): the limit is level 50")
    if index >= 1 << level:
        raise ValueError(
            f"{name!r} does not exist: level {level} has indices 0 to {(1 << level) - 1}"
        )
    return level, index


def is_expert(name: str) -> bool:
    """Whether a name is of the form of an expert's, such as ``E2_3``, or ``M_C``."""
    return name == COMPLEMENT or _NAME.fullmatch(name) is not None


def parent(name: str) -> str | None:
    """The expert whose checkpoint this one starts from: E2_3 → E1_1 → E0_0 → None; M_C → E0_0.

    Raises:
        ValueError: This is not an expert's name.
    """
    if name == COMPLEMENT:
        return ROOT
    level, index = level_and_index(name)
    return f"E{level - 1}_{index // 2}" if level else None


def interval(name: str, warp: Warp = EQUAL_SHARES) -> Interval:
    """The interval of p(σ) that a tree expert covers: one of 2^level equal shares, warped.

    Raises:
        ValueError: This is not a tree expert's name; for ``M_C`` see :func:`complement`. Or the
            warp leaves the expert nothing.
    """
    level, index = level_and_index(name)
    low, high = warp(index / 2**level), warp((index + 1) / 2**level)
    if low == high:
        raise ValueError(
            f"the boundaries leave {name} less than 1e-6 of p(σ), at quantile {low:g}; use experts "
            "of a lower level there"
        )
    return Interval(low, high)


def complement(names: list[str], warp: Warp = EQUAL_SHARES) -> Interval:
    """The interval of the complement ``M_C``: the part of p(σ) that the named experts leave.

    Raises:
        ValueError: They leave nothing, or more than one interval, or they overlap.
    """
    lo, hi = 0.0, 1.0
    pieces = {name: interval(name, warp) for name in names}
    for piece in sorted(pieces.values(), key=lambda i: i.q_lo):
        if piece.q_lo == lo:
            lo = piece.q_hi
    for piece in sorted(pieces.values(), key=lambda i: -i.q_hi):
        if piece.q_hi == hi:
            hi = piece.q_lo
    left = Interval(lo, hi) if lo < hi else None
    if left is None:
        raise ValueError(f"experts {', '.join(names)} leave nothing of p(σ) to {COMPLEMENT}")
    check_cover({**pieces, COMPLEMENT: left})
    return left


def intervals_of(names: list[str], warp: Warp = EQUAL_SHARES) -> dict[str, Interval]:
    """Expert → its interval; that of ``M_C``, if named, follows from the others.

    Raises:
        ValueError: A name is not an expert's, or the others leave no single interval to ``M_C``.
    """
    others = [n for n in names if n != COMPLEMENT]
    return {n: complement(others, warp) if n == COMPLEMENT else interval(n, warp) for n in names}


def check_cover(experts: Mapping[str, Interval]) -> None:
    """Check that the intervals cover p(σ) exactly once.

    Raises:
        ValueError: There is a gap or an overlap; the message names the experts beside it.
    """
    reached, last = EVERYTHING.q_lo, "the low end"
    for name, piece in sorted(experts.items(), key=lambda item: item[1].q_lo):
        if piece.q_lo > reached:
            raise ValueError(
                f"no expert covers quantiles {reached:g} to {piece.q_lo:g} of p(σ), between "
                f"{last} and {name}; add one there, or {COMPLEMENT} for all that is left"
            )
        if piece.q_lo < reached:
            raise ValueError(
                f"{last} and {name} overlap on quantiles {piece.q_lo:g} to "
                f"{min(reached, piece.q_hi):g} of p(σ); remove one of them"
            )
        reached, last = piece.q_hi, name
    if reached < EVERYTHING.q_hi:
        raise ValueError(
            f"no expert covers quantiles {reached:g} to 1 of p(σ), above {last}; "
            f"add one there, or {COMPLEMENT} for all that is left"
        )
