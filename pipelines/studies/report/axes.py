"""Axes that several figures share: zero lines, few ticks, noise levels, numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ediffi_core.noise import NoiseDistribution
from pipelines.studies.report.theme import Colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOG_FROM = 4
"""Ratio of the largest number to the smallest from which an axis is logarithmic."""

FEWEST_BETWEEN = 0.09
"""Smallest distance of two labels, as a share of the axis."""


def zero(axes: Axes, colours: Colours, *, vertical: bool) -> None:
    """The line of no gain."""
    draw = axes.axvline if vertical else axes.axhline
    draw(0, color=colours["ink"], linewidth=1.1, zorder=1.5)


def few(axis: Any, count: int = 5) -> None:
    """At most so many ticks."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10]))


def sigma(axes: Axes, low: float, high: float) -> None:
    """A log axis of σ with plain numbers at powers of ten and thirds of them."""
    import math

    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_xlim(low, high)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    heads = (1,) if high / low > 300 else (1, 3)
    ticks = [head * 10.0**n for n in powers for head in heads if low <= head * 10.0**n <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("noise level σ")


def noise(
    axes: Axes, colours: Colours, edges: Sequence[float], p: NoiseDistribution | None, count: int
) -> None:
    """The x of strata: log σ with a line at each edge of an equal share of p(σ), or the shares."""
    if p is None:
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of p(σ) below, from low noise to high")
    else:
        sigma(axes, p.sigma_at(0.2 / count), p.sigma_at(1 - 0.2 / count))
        axes.set_xlabel(f"noise level σ; lines divide p(σ) into {count} equal shares")
    for edge in edges:
        axes.axvline(edge, color=colours["line"], linewidth=0.9, zorder=0.5)
    axes.grid(axis="y")


def numbers(axes: Axes, values: Sequence[float], horizontal: bool = True) -> None:
    """An axis with the given numbers as ticks; logarithmic if they span much."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis = axes.xaxis if horizontal else axes.yaxis
    if values[0] > 0 and values[-1] / values[0] >= LOG_FROM:
        (axes.set_xscale if horizontal else axes.set_yscale)("log")
    axis.set_major_locator(FixedLocator(_apart(values)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    axis.set_minor_locator(NullLocator())


def _apart(values: Sequence[float]) -> list[float]:
    """The values without those whose labels would touch the one before."""
    import math

    log = values[0] > 0 and values[-1] / values[0] >= LOG_FROM
    place = [math.log(v) if log else v for v in values]
    length = (place[-1] - place[0]) or 1.0
    kept: list[int] = []
    for at in range(len(values)):
        if not kept or (place[at] - place[kept[-1]]) / length >= FEWEST_BETWEEN:
            kept.append(at)
    return [values[at] for at in kept]


def compact(value: float) -> str:
    """A number of few characters: ``60 k``, ``2.4 M``, ``0.3``."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:g}"
