"""Figures of gains: forest plots, gains by noise level, and gains along an axis."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.spec.study import Comparison, Figure
from pipelines.studies import budget
from pipelines.studies.budget import Crossing
from pipelines.studies.report import axes as axis
from pipelines.studies.report.shown import (
    At,
    Record,
    Shown,
    Source,
    comparison_label,
    in_percent,
    measure_label,
    places,
    strata_edges,
)
from pipelines.studies.report.theme import Colours, Panel, series
from pipelines.studies.statistics import Effect, effect

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = frozenset(
    {"at", "comparison", "measure", "gain", "gain low", "gain high", "gain %", "theirs", "seeds",
     "pictures"}
)  # fmt: skip
"""Columns of :meth:`Row.record`; another one is the axis along x."""

ROW = 44
"""Height of a comparison in a forest plot, in points."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A comparison's effect, in the unit that is shown."""

    label: str
    effect: Effect
    measure: str

    @property
    def unit(self) -> float:
        """What the gain is multiplied by: 100 over the other model's value, or 1."""
        return 100 / abs(self.effect.theirs) if in_percent(self.measure) else 1.0

    @property
    def mean(self) -> float:
        return self.effect.mean * self.unit

    @property
    def ends(self) -> tuple[float, float]:
        """The interval; the mean twice where there is none."""
        if self.effect.interval is None:
            return self.mean, self.mean
        low, high = self.effect.interval
        return low * self.unit, high * self.unit

    @property
    def seeds(self) -> list[float]:
        return [gain * self.unit for gain in self.effect.gains]

    def record(self, **first: Any) -> Record:
        """The row of the figure's data."""
        e = self.effect
        low, high = e.interval or (math.nan, math.nan)
        return {
            **first,
            "comparison": self.label,
            "measure": self.measure,
            "gain": e.mean,
            "gain low": low,
            "gain high": high,
            "gain %": e.relative,
            "theirs": e.theirs,
            "seeds": len(e.seeds),
            "pictures": e.pictures,
        }


def _rows(
    source: Source, figure: Figure, at: At, measure: str | None, missing: list[str]
) -> list[Row]:
    """The effects of a figure's comparisons at a place; what has none is added to ``missing``."""
    found = []
    for one in figure.comparisons:
        comparison = one.model_copy(update={"measure": measure or one.measure})
        label = comparison_label(comparison)
        try:
            result = effect(source.results, comparison, at)
        except ValueError as error:
            missing.append(f"{', '.join([label, *at.values()])}: {error}")
        else:
            found.append(Row(label=label, effect=result, measure=comparison.measure))
    return found


def unit_label(measure: str) -> str:
    """Label of an axis of gains."""
    unit = "% of the compared loss" if in_percent(measure) else f"{measure_label(measure)}"
    return f"gain, {unit}"


# -- forest plots ----------------------------------------------------------------------------------


def gains(source: Source, name: str, figure: Figure) -> Shown:
    """A forest plot for each place and measure: gain, 95 % interval, and every seed."""
    panels, records, missing = [], [], list[str]()
    for measure in figure.measures:
        for where, at in places(source.study, figure):
            rows = _rows(source, figure, at, measure, missing)
            if not rows:
                continue
            records += [row.record(**({"at": where} if where else {})) for row in rows]
            title = ": ".join(part for part in (where, measure_label(measure)) if part)
            panels.append(
                Panel(
                    title=title,
                    describes=f"{title}. " + "; ".join(map(_sentence, rows)),
                    draw=partial(_forest, rows, measure),
                    height=ROW * sum(_lines(row) for row in rows) + 48,
                )
            )
    return Shown(
        name=name, title=figure.title, says=figure.says, panels=tuple(panels),
        records=tuple(records), missing=tuple(missing),
        notes=("Right of zero, the first model of a comparison is better. Bars are 95 % intervals "
               "over seeds and pictures, rings are single seeds.",),
    )  # fmt: skip


def _lines(row: Row) -> float:
    return 1 + 0.34 * (len(_wrapped(row)) - 1)


def _wrapped(row: Row) -> list[str]:
    return textwrap.wrap(row.label, 38) or [""]


def _sentence(row: Row) -> str:
    low, high = row.ends
    unit = " %" if in_percent(row.measure) else ""
    return f"{row.label}: {signed(row.mean)}{unit} [{signed(low)}, {signed(high)}]"


def signed(value: float) -> str:
    """A gain with its sign and three digits."""
    return f"{value:+.3g}".replace("-", "−")


def _forest(rows: Sequence[Row], measure: str, axes: Axes, colours: Colours) -> None:
    at = 0.0
    for row in rows:
        words = _wrapped(row)
        low, high = row.ends
        strong = colours["better" if low > 0 else "worse" if high < 0 else "soft"]
        if low == high:
            strong = colours["soft"]
        middle = at + 0.34 * len(words) + 0.3
        seeds = row.seeds
        axes.plot(
            seeds, [middle] * len(seeds), linestyle="", marker="o", markersize=5.5,
            markerfacecolor="none", markeredgecolor=strong, alpha=0.55, zorder=2,
        )  # fmt: skip
        axes.plot([low, high], [middle, middle], color=strong, linewidth=2.6, zorder=3)
        axes.plot([row.mean], [middle], marker="D", markersize=7, color=strong, zorder=4)
        beside = axes.get_yaxis_transform()
        behind = {"facecolor": colours["paper"], "edgecolor": "none", "pad": 1.5}
        axes.text(
            0, at + 0.06, "\n".join(words), transform=beside, va="top", fontsize=11.5, bbox=behind
        )
        unit = " %" if in_percent(measure) else ""
        axes.text(
            1, at + 0.06, f"{signed(row.mean)}{unit}", transform=beside, ha="right", va="top",
            color=strong, fontsize=11.5, fontweight="bold", bbox=behind,
        )  # fmt: skip
        at += _lines(row)
    axes.set_ylim(at, 0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axis.zero(axes, colours, vertical=True)
    axes.margins(x=0.08)
    axis.few(axes.xaxis)
    axes.set_xlabel(unit_label(measure) + " →")


# -- by noise level --------------------------------------------------------------------------------


def gain_by_noise(source: Source, name: str, figure: Figure) -> Shown:
    """Lines of gains over the strata of p(σ), with 95 % bands; a panel for each place."""
    strata = source.results.strata
    panels, records, missing = [], [], list[str]()
    if not strata:
        missing.append("no losses by strata of p(σ); set `evaluate.losses.strata`")
    for where, at in places(source.study, figure) if strata else ():
        lines: dict[str, list[Row]] = {}
        for stratum in strata:
            for row in _rows(source, figure, at, stratum, missing):
                lines.setdefault(row.label, []).append(row)
                records.append(row.record(**({"at": where} if where else {})))
        full = {label: rows for label, rows in lines.items() if len(rows) == len(strata)}
        if full:
            borders = _borders(source, figure.comparisons, at)
            panels.append(noise_panel(source, full, strata, borders, where))
    return Shown(
        name=name, title=figure.title, says=figure.says, panels=tuple(panels),
        records=tuple(records), missing=tuple(dict.fromkeys(missing)),
        notes=(f"Each of the {len(strata)} points is one equal share of p(σ). Above zero, the "
               "first model of a comparison is better; bands are 95 % intervals over seeds and "
               "pictures; dashed lines are borders between experts.",) if panels else (),
    )  # fmt: skip


def _borders(source: Source, comparisons: Sequence[Comparison], at: At) -> list[float]:
    """Quantiles of p(σ) that separate the experts of the first models of comparisons."""
    found: set[float] = set()
    for comparison in comparisons:
        place = {**comparison.at, **at}
        for group in source.results.models(comparison.mine, place).values():
            found |= {q for interval in group.intervals.values() for q in interval}
    return sorted(q for q in found if 0 < q < 1)


def noise_panel(
    source: Source,
    lines: dict[str, list[Row]],
    strata: Sequence[str],
    borders: Sequence[float],
    where: str,
) -> Panel:
    """The panel of gains by noise level."""
    says = [
        f"{label}: " + ", ".join(f"{signed(row.mean)} %" for row in rows)
        for label, rows in lines.items()
    ]
    return Panel(
        title=where,
        describes=f"Gain by noise level, lowest first{f', {where}' if where else ''}. "
        + "; ".join(says),
        draw=partial(_by_noise, source, lines, strata, borders),
        legend=True,
    )


def _by_noise(
    source: Source,
    lines: dict[str, list[Row]],
    strata: Sequence[str],
    borders: Sequence[float],
    axes: Axes,
    colours: Colours,
) -> None:
    x, edges, _ = strata_edges(source, strata)
    axis.noise(axes, colours, edges, source.noise, len(strata))
    for q in borders:
        border = q if source.noise is None else source.noise.sigma_at(q)
        axes.axvline(border, color=colours["soft"], linestyle=(0, (4, 3)), linewidth=1)
    axis.zero(axes, colours, vertical=False)
    for number, (label, rows) in enumerate(lines.items()):
        strong, marker = series(colours, number)
        low, high = zip(*(row.ends for row in rows))
        axes.fill_between(x, low, high, color=strong, alpha=0.2, linewidth=0)
        axes.plot(
            x, [row.mean for row in rows], color=strong, marker=marker, markersize=5.5,
            linewidth=1.8, label=label,
        )  # fmt: skip
    axes.set_ylabel(unit_label("val_loss"))


def losses_by_noise(source: Source, name: str, figure: Figure) -> Shown:
    """A table of mean losses in every stratum, the lowest of each place in bold."""
    measures = [*source.results.strata, "val_loss"]
    records: list[dict[str, Any]] = []
    missing, best = list[str](), set[tuple[int, str]]()
    for where, at in places(source.study, figure):
        first = len(records)
        for label, model in figure.models.items():
            groups = source.results.models(model, at)
            if not groups:
                missing.append(f"{', '.join([label, *at.values()])}: no finished cell")
                continue
            values: dict[str, Any] = {"at": where} if where else {}
            values |= {"model": label, "seeds": len(groups)}
            for measure in measures:
                means = [
                    float(np.nanmean(g.scores[measure]))
                    for g in groups.values()
                    if measure in g.scores
                ]
                values[short(measure)] = float(np.mean(means)) if means else math.nan
            records.append(values)
        for measure in map(short, measures):
            here = [(r[measure], i) for i, r in enumerate(records[first:], first)]
            if len(here) > 1 and math.isfinite(min(here)[0]):
                best.add((min(here)[1], measure))
    return Shown(
        name=name, title=figure.title, says=figure.says, records=tuple(records),
        missing=tuple(missing), as_table=True, best=frozenset(best),
        notes=(f"Mean validation losses in {len(measures) - 1} equal shares of p(σ), lowest noise "
               "first, and over all of p(σ); the lowest in bold.",) if records else (),
    )  # fmt: skip


def short(measure: str) -> str:
    """A column's name for a loss: ``1/8``, or ``all``."""
    return measure.removeprefix("val_loss/") if measure != "val_loss" else "all"


# -- along an axis ---------------------------------------------------------------------------------


def gain_against(source: Source, name: str, figure: Figure) -> Shown:
    """Gain against an axis whose values are numbers, and where it crosses zero."""
    panels, records, missing = [], [], list[str]()
    values = _numbers(source, figure, missing)
    crossings: list[str] = []
    for where, at in places(source.study, figure) if values else ():
        lines: dict[str, list[tuple[float, Row]]] = {}
        for x, value in values:
            for row in _rows(source, figure, {**at, str(figure.axis): value}, None, missing):
                lines.setdefault(row.label, []).append((x, row))
                first = {"at": where} if where else {}
                records.append(row.record(**first, **{str(figure.axis): x}))
        if lines:
            pays = {label: _pays(points) for label, points in lines.items()}
            panels.append(_against_panel(figure, lines, pays, where))
            crossings += [
                f"{', '.join(part for part in (label, where) if part)}: better {words}."
                for label, points in lines.items()
                if (words := _pays_text(points, str(figure.axis)))
            ]
    return Shown(
        name=name, title=figure.title, says=figure.says, panels=tuple(panels),
        records=tuple(records), missing=tuple(missing),
        notes=("Above zero, the first model of a comparison is better; bands are 95 % intervals "
               "over seeds and pictures; a vertical line is where a gain crosses zero.", *crossings)
        if panels else (),
    )  # fmt: skip


def _pays(points: Sequence[tuple[float, Row]]) -> Crossing | None:
    """Where the gain crosses zero; None if it does not, or too little is known."""
    known = [(x, row.effect) for x, row in points]
    return budget.crossing(known) if _is_enough(points) else None


def _pays_text(points: Sequence[tuple[float, Row]], along: str) -> str:
    """Where the first model is better, in words; empty if too little is known."""
    known = [(x, row.effect) for x, row in points]
    return budget.text(known, along) if _is_enough(points) else ""


def _is_enough(points: Sequence[tuple[float, Row]]) -> bool:
    """Whether a crossing can be computed: two points above 0, all of several seeds."""
    return len(points) > 1 and all(x > 0 and row.effect.interval for x, row in points)


def _numbers(source: Source, figure: Figure, missing: list[str]) -> list[tuple[float, str]]:
    if figure.axis is None:
        missing.append("the figure names no `axis:` for x")
        return []
    found = []
    for value in source.study.values(figure.axis):
        try:
            found.append((float(value), value))
        except ValueError:
            missing.append(f"{figure.axis} {value}: is no number, so it has no place along x")
    return sorted(found)


def _against_panel(
    figure: Figure,
    lines: dict[str, list[tuple[float, Row]]],
    pays: dict[str, Crossing | None],
    where: str,
) -> Panel:
    measure = next(iter(lines.values()))[0][1].measure
    says = [
        f"{label}: " + ", ".join(f"{signed(row.mean)} at {x:g}" for x, row in points)
        for label, points in lines.items()
    ]
    return Panel(
        title=where,
        describes=f"Gain against {figure.axis}{f', {where}' if where else ''}. " + "; ".join(says),
        draw=partial(_against, str(figure.axis), measure, lines, pays),
        legend=True,
    )


def _against(
    along: str,
    measure: str,
    lines: dict[str, list[tuple[float, Row]]],
    pays: dict[str, Crossing | None],
    axes: Axes,
    colours: Colours,
) -> None:
    axis.zero(axes, colours, vertical=False)
    axis.numbers(axes, sorted({x for points in lines.values() for x, _ in points}))
    for number, (label, points) in enumerate(lines.items()):
        strong, marker = series(colours, number)
        x = [at for at, _ in points]
        low, high = zip(*(row.ends for _, row in points))
        axes.fill_between(x, low, high, color=strong, alpha=0.2, linewidth=0)
        axes.plot(
            x, [row.mean for _, row in points], color=strong, marker=marker, markersize=5.5,
            linewidth=1.8, label=label,
        )  # fmt: skip
        if (crossing := pays[label]) is not None:
            axes.axvline(crossing.x, color=strong, linestyle=(0, (4, 3)), linewidth=1.2)
            axes.plot([crossing.x], [0], marker="o", markersize=8, markerfacecolor=colours["paper"],
                      markeredgecolor=strong, markeredgewidth=1.8, zorder=5)  # fmt: skip
    axes.grid(axis="y")
    axes.set_xlabel(along)
    axes.set_ylabel(unit_label(measure))
