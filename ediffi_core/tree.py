"""The expert tree: experts' names such as E2_3, their intervals of p(σ), and complements.

Level l cuts p(σ) into 2^l equal shares (eDiff-I, section 4.1). An ensemble picks experts of any
levels; the complement ``M_C`` covers what they leave. Does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ediffi_core.noise import EVERYTHING, Interval

COMPLEMENT = "M_C"
ROOT = "E0_0"
_NAME = re.compile(r"E(0|[1-9][0-9]*)_(0|[1-9][0-9]*)")  # no leading zeros: names are unique


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


def interval(name: str) -> Interval:
    """The interval of p(σ) that a tree expert covers: one of 2^level equal shares.

    Raises:
        ValueError: This is not a tree expert's name; for ``M_C`` see :func:`complement`.
    """
    level, index = level_and_index(name)
    return Interval(index / 2**level, (index + 1) / 2**level)


def complement(names: list[str]) -> Interval:
    """The interval of the complement ``M_C``: the part of p(σ) that the named experts leave.

    Raises:
        ValueError: They leave nothing, or more than one interval, or they overlap.
    """
    lo, hi = 0.0, 1.0
    for piece in sorted((interval(n) for n in names), key=lambda i: i.q_lo):
        if piece.q_lo == lo:
            lo = piece.q_hi
    for piece in sorted((interval(n) for n in names), key=lambda i: -i.q_hi):
        if piece.q_hi == hi:
            hi = piece.q_lo
    left = Interval(lo, hi) if lo < hi else None
    if left is None:
        raise ValueError(f"experts {', '.join(names)} leave nothing of p(σ) to {COMPLEMENT}")
    check_cover({**{n: interval(n) for n in names}, COMPLEMENT: left})
    return left


def intervals_of(names: list[str]) -> dict[str, Interval]:
    """Expert → its interval; that of ``M_C``, if named, follows from the others.

    Raises:
        ValueError: A name is not an expert's, or the others leave no single interval to ``M_C``.
    """
    others = [n for n in names if n != COMPLEMENT]
    return {n: complement(others) if n == COMPLEMENT else interval(n) for n in names}


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
