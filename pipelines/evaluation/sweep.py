"""The settings that a quality–alignment curve goes through."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from ediffi_core.solver_names import SOLVER_NAMES
from pipelines.spec.base import did_you_mean

MOST_VALUES = 1000
"""Most values of one axis; more are probably a slip of the step."""

HIGHEST = 10**6
"""Highest value of an axis."""

GUIDANCE, STEPS, SOLVER = "guidance", "steps", "solver"


@dataclass(frozen=True)
class Sweep:
    """Sampling settings to compare, axis by axis; a line's points vary along the first numbers."""

    axes: Mapping[str, Sequence[Any]]
    """Name of a sampling setting → its values, in the order of the curve."""

    @staticmethod
    def parse(
        guidance: str | None = None, steps: str | None = None, solver: str | None = None
    ) -> Sweep:
        """Read the axes from text.

        Numbers are written as a list, ``1,2,4``, of numbers and of ranges ``LOW:HIGH:STEP`` that
        include both ends.

        Args:
            guidance: Guidance scales w.
            steps: Numbers of sampling steps.
            solver: Names of solvers, separated by commas.

        Raises:
            ValueError: A text cannot be read, or a value is out of range.
        """
        axes: dict[str, Sequence[Any]] = {}
        if guidance is not None:
            axes[GUIDANCE] = [float(v) for v in numbers(guidance, "--guidance", least=0)]
        if steps is not None:
            axes[STEPS] = [int(v) for v in numbers(steps, "--steps", least=1, whole=True)]
        if solver is not None:
            axes[SOLVER] = names(solver, "--solver", SOLVER_NAMES)
        return Sweep(axes)

    @property
    def along(self) -> str | None:
        """The axis that the points of a line vary along; None if each line is one point."""
        return next((name for name in self.axes if name != SOLVER), None)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Values of the further axes, a line of the picture for each combination."""
        rest = {name: values for name, values in self.axes.items() if name != self.along}
        return [
            dict(zip(rest, values, strict=True)) for values in itertools.product(*rest.values())
        ]

    def points(self, line: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Changed settings of the points of a line, as one of :attr:`lines`."""
        if self.along is None:
            return [dict(line)]
        return [{self.along: value, **line} for value in self.axes[self.along]]


def numbers(text: str, option: str, *, least: float, whole: bool = False) -> list[Decimal]:
    """Read numbers and ranges, sorted and without repeats.

    Args:
        text: Such as ``0:10:0.5`` or ``0,1,2:8:2``.
        option: What gave the text, for error messages.
        least: Least value allowed.
        whole: Whether only whole numbers are allowed.

    Raises:
        ValueError: The text cannot be read, or a value is out of range.
    """
    found: set[Decimal] = set()
    for part in text.split(","):
        found |= set(_range(part.strip(), text, option))
        if len(found) > MOST_VALUES:
            raise _too_many(text, option)
    for value in sorted(found):
        if whole and value != value.to_integral_value():
            raise ValueError(f"{option} {text!r} has {value}; write whole numbers")
        if value < Decimal(str(least)):
            raise ValueError(f"{option} {text!r} has {value}; the least is {least:g}")
    return sorted(found)


def _range(part: str, text: str, option: str) -> list[Decimal]:
    how = "write numbers as 0,1.5,4 or a range LOW:HIGH:STEP as 0:10:0.5"
    try:
        values = [Decimal(number) for number in part.split(":")]
    except InvalidOperation:
        raise ValueError(f"{option} {text!r} cannot be read at {part!r}; {how}") from None
    if len(values) not in (1, 3) or not all(
        v.is_finite() and -HIGHEST <= v <= HIGHEST for v in values
    ):
        raise ValueError(f"{option} {text!r} cannot be read at {part!r}; {how}")
    if len(values) == 1:
        return values
    low, high, step = values
    if step <= 0 or high < low:
        raise ValueError(
            f"{option} {part!r} has no values; write LOW:HIGH:STEP with LOW up to HIGH and a STEP "
            "above 0"
        )
    if high - low > step * MOST_VALUES:
        raise _too_many(text, option)
    return [low + i * step for i in range(int((high - low) // step) + 1)]


def _too_many(text: str, option: str) -> ValueError:
    return ValueError(
        f"{option} {text!r} has more than {MOST_VALUES:,} values; write a larger STEP"
    )


def names(text: str, option: str, known: Sequence[str]) -> list[str]:
    """Read names, without repeats and in their order.

    Raises:
        ValueError: One is not in ``known``.
    """
    found = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in found:
        if name not in known:
            hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
            raise ValueError(f"{option} {text!r}: there is no {name!r}{hint}")
    return found


def label(setting: Mapping[str, Any], name: Callable[[str], str] = str) -> str:
    """A setting for people, such as ``steps 20, solver heun``; empty without changes."""
    return ", ".join(
        f"{name(key)} {value:g}" if isinstance(value, float) else f"{name(key)} {value}"
        for key, value in setting.items()
    )
