"""Figures of probes: effect of the text, prompt switching, encoders, guidance, time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.evaluation.scores import lower_is_better
from pipelines.spec.study import Figure
from pipelines.studies.report import axes as axis
from pipelines.studies.report.shown import (
    At,
    Record,
    Shown,
    Source,
    arrow,
    measure_label,
    places,
)
from pipelines.studies.report.theme import Colours, Panel, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""Model's label → the probe of every seed."""

DISTANCE = "kernel_distance"
SINGLE = "Thick lines are means over seeds, thin ones single seeds."


def runs(source: Source, figure: Figure, at: At, probe: str, missing: list[str]) -> Runs:
    """The probe's results of a figure's models at a place; lacking ones go to ``missing``."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for label, model in figure.models.items():
        cells = source.results.at(source.study.place(at, model.at))
        key = f"probe/{model.group}/{probe}"
        stored = [cell.measurements[key] for cell in cells.values() if key in cell.measurements]
        if stored:
            found[label] = stored
        else:
            missing.append(f"{', '.join([label, *at.values()])}: no {probe} of {model.group}")
    if not figure.models:
        missing.append(f"the figure names no `models:` whose {probe} to show")
    return found


def _mean(values: Iterable[float | None]) -> float:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else math.nan


def _first(where: str, **values: Any) -> dict[str, Any]:
    return ({"at": where} if where else {}) | values


def _chosen(figure: Figure, known: Sequence[str]) -> list[str]:
    """The measures that the figure asks for; all that there are if it asks for none of them."""
    return [m for m in figure.measures if m in known] or list(known)


def _line(
    axes: Axes,
    colours: Colours,
    number: int,
    label: str,
    x: Sequence[float],
    seeds: Sequence[Sequence[float | None]],
    style: str = "-",
) -> None:
    """A line of means over seeds, above thin lines of the seeds."""
    strong, marker = series(colours, number)
    values = np.array([[math.nan if v is None else v for v in seed] for seed in seeds])
    if len(values) > 1:
        for seed in values:
            axes.plot(x, seed, color=strong, linewidth=0.8, alpha=0.45, linestyle=style)
    axes.plot(
        x, values.mean(0), color=strong, linewidth=2, linestyle=style, marker=marker,
        markersize=5, markevery=max(1, len(x) // 12), label=label,
    )  # fmt: skip


# -- effect of the text ----------------------------------------------------------------------------

TEXT_EFFECTS: tuple[tuple[str, str, Callable[[Any], float | None]], ...] = (
    ("explained", "share of the error that the text removes", lambda p: p["explained"]["value"]),
    ("change", "change of the denoised picture by the text", lambda p: p["change"]["value"]),
    (
        "attention",
        "share of cross-attention on the text",
        lambda p: 1 - p["attention"]["null"] if p["attention"] else None,
    ),
)


def text_effect(source: Source, name: str, figure: Figure) -> Shown:
    """What the text does to the denoised picture, by noise level."""
    panels, records, missing = [], list[Record](), list[str]()
    for where, at in places(source.study, figure):
        found = runs(source, figure, at, "text_effect", missing)
        for label, seeds in found.items():
            for number, point in enumerate(seeds[0]["points"]):
                values = {
                    key: _mean(get(seed["points"][number]) for seed in seeds)
                    for key, _, get in TEXT_EFFECTS
                }
                records.append(_first(where, model=label, **{"σ": point["sigma"]}, **values))
        for key, title, get in TEXT_EFFECTS if found else ():
            if all(get(p) is None for seeds in found.values() for p in seeds[0]["points"]):
                continue
            panels.append(
                Panel(
                    title=": ".join(part for part in (where, title) if part),
                    describes=f"{title} by noise level: {_ends(records, key)}",
                    draw=partial(_text_effect, found, get),
                    legend=True,
                )
            )
    return Shown(
        name=name, title=figure.title, says=figure.says, panels=tuple(panels),
        records=tuple(records), missing=tuple(missing), notes=(SINGLE,) if panels else (),
    )  # fmt: skip


def _ends(records: Sequence[Record], key: str) -> str:
    """The first and the last value of every model, for a description."""
    parts = []
    for label in dict.fromkeys(r["model"] for r in records):
        values = [r[key] for r in records if r["model"] == label]
        parts.append(f"{label} from {values[0]:.3g} to {values[-1]:.3g}")
    return "; ".join(parts)


def _text_effect(
    found: Runs, get: Callable[[Any], float | None], axes: Axes, colours: Colours
) -> None:
    for number, (label, seeds) in enumerate(found.items()):
        x = [point["sigma"] for point in seeds[0]["points"]]
        _line(axes, colours, number, label, x, [[get(p) for p in s["points"]] for s in seeds])
    axis.sigma(axes, min(x), max(x))
    axes.grid(axis="y")
    axis.few(axes.yaxis)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))


# -- prompt switching ------------------------------------------------------------------------------

CAPTIONS = {"first": "the first caption", "second": "the second caption"}


def prompt_switch(source: Source, name: str, figure: Figure) -> Shown:
    """How well pictures show the captions before and after a switch, by when it happens."""
    panels, records, missing = [], list[Record](), list[str]()
    for where, at in places(source.study, figure):
        for label, seeds in runs(source, figure, at, "prompt_switch", missing).items():
            points = seeds[0]["points"]
            for measure in _chosen(figure, list(points[0]["first"])):
                rows = []
                for number, point in enumerate(points):
                    row = {of: _mean(_switched(s, of, measure)[number] for s in seeds)
                           for of in CAPTIONS}  # fmt: skip
                    rows.append({"fraction": point["fraction"], **row})
                records += [_first(where, model=label, measure=measure, **row) for row in rows]
                title = ", ".join(part for part in (where, label) if part)
                panels.append(
                    Panel(
                        title=title if len(points[0]["first"]) == 1 else f"{title}: {measure}",
                        describes=f"{title}: {measure} by the first caption falls, or rises, from "
                        f"{rows[0]['first']:.3g} to {rows[-1]['first']:.3g}, by the second from "
                        f"{rows[0]['second']:.3g} to {rows[-1]['second']:.3g}",
                        draw=partial(_prompt_switch, seeds, measure),
                        legend=True,
                    )
                )
    return Shown(
        name=name, title=figure.title, says=figure.says, panels=tuple(panels),
        records=tuple(records), missing=tuple(missing),
        notes=(f"At 0 all steps have the second caption, at 1 the first. {SINGLE}",)
        if panels else (),
    )  # fmt: skip


def _switched(seed: Mapping[str, Any], of: str, measure: str) -> list[float | None]:
    return [point[of][measure]["value"] for point in seed["points"]]


def _prompt_switch(
    seeds: Sequence[Mapping[str, Any]], measure: str, axes: Axes, colours: Colours
) -> None:
    x = [point["fraction"] for point in seeds[0]["points"]]
    for number, (of, label) in enumerate(CAPTIONS.items()):
        _line(axes, colours, number, label, x, [_switched(s, of, measure) for s in seeds])
    axes.grid(axis="y")
    axes.set_xlim(-0.02, 1.02)
    axis.few(axes.yaxis)
    axes.set_xlabel("share of the steps before the switch")
    axes.set_ylabel(f"{measure_label(measure)} {arrow(measure)}")


# -- encoders --------------------------------------------------------------------------------------

LENGTHS = {"short": "short captions", "all": "all", "long": "long"}


def encoders(source: Source, name: str, figure: Figure) -> Shown:
    """Measures with each text encoder alone, with all and with none."""
    panels, records, missing = [], list[Record](), list[str]()
    for where, at in places(source.study, figure):
        for label, seeds in runs(source, figure, at, "encoders", missing).items():
            points = seeds[0]["points"]
            for measure in _chosen(figure, list(points[0]["measures"])):
                rows: dict[tuple[str, str], list[float]] = {}
                for point in (p for seed in seeds for p in seed["points"]):
                    value = point["measures"].get(measure, {}).get("value")
                    if value is not None:
                        rows.setdefault((point["encoders"], point["captions"]), []).append(value)
                means = {key: float(np.mean(values)) for key, values in rows.items()}
                records += [
                    _first(where, model=label, encoders=kept, captions=length, measure=measure,
                           value=value, seeds=len(rows[kept, length]))
                    for (kept, length), value in means.items()
                ]  # fmt: skip
                title = ", ".join(part for part in (where, label) if part)
                count = len({kept for kept, _ in rows})
                panels.append(
                    Panel(
                        title=f"{title}: {measure_label(measure)} {arrow(measure)}",
                        describes=f"{title}: {measure}, "
                        + "; ".join(f"{k} {n} {v:.3g}" for (k, n), v in means.items()),
                        draw=partial(_encoders, rows),
                        height=34 * count + 40,
                        legend=True,
                    )
                )
    return Shown(
        name=name, title=figure.title, says=figure.says, panels=tuple(panels),
        records=tuple(records), missing=tuple(missing),
        notes=("Large marks are means over seeds, small ones single seeds.",) if panels else (),
    )  # fmt: skip


def _encoders(rows: Mapping[tuple[str, str], list[float]], axes: Axes, colours: Colours) -> None:
    names = list(dict.fromkeys(kept for kept, _ in rows))
    for number, (length, label) in enumerate(LENGTHS.items()):
        strong, marker = series(colours, number)
        shift = (number - 1) * 0.22
        points = [(at + shift, rows.get((kept, length), [])) for at, kept in enumerate(names)]
        drawn = [(y, values) for y, values in points if values]
        for y, values in drawn:
            axes.plot(values, [y] * len(values), linestyle="", marker=marker, markersize=3.5,
                      color=strong, alpha=0.4)  # fmt: skip
        if drawn:
            axes.plot([float(np.mean(v)) for _, v in drawn], [y for y, _ in drawn], linestyle="",
                      marker=marker, markersize=7, color=strong, label=label)  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axis.few(axes.xaxis)


# -- guidance --------------------------------------------------------------------------------------


def guidance(source: Source, name: str, figure: Figure) -> Shown:
    """Quality–alignment curves over the guidance scale."""
    panels, records, missing = [], list[Record](), list[str]()
    for where, at in places(source.study, figure):
        found = runs(source, figure, at, "guidance", missing)
        if not found:
            continue
        known = list(next(iter(found.values()))[0]["points"][0]["measures"])
        pair = _pair(figure, known)
        if pair is None:
            missing.append(
                f"{where or 'guidance'}: needs an alignment and a distance, measured are "
                f"{', '.join(known)}"
            )
            continue
        curves = {label: _curve(seeds, pair) for label, seeds in found.items()}
        for label, points in curves.items():
            records += [
                _first(where, model=label, w=w, **dict(zip(pair, values))) for w, *values in points
            ]
        panels.append(
            Panel(
                title=where,
                describes=f"{pair[1]} against {pair[0]} over the guidance scale: "
                + "; ".join(
                    f"{label}: " + ", ".join(f"{y:.3g} at {x:.3g} (w {w:g})" for w, x, y in points)
                    for label, points in curves.items()
                ),
                draw=partial(_guidance, curves, pair),
                height=280,
                legend=True,
            )
        )
    return Shown(
        name=name, title=figure.title, says=figure.says, panels=tuple(panels),
        records=tuple(records), missing=tuple(missing),
        notes=("Each point is a guidance scale w, means over seeds; right and down is better.",)
        if panels else (),
    )  # fmt: skip


def _pair(figure: Figure, known: Sequence[str]) -> tuple[str, str] | None:
    """Alignment and distance: those of the figure, else the first of each."""
    asked = [m for m in figure.measures if m in known]
    up = [m for m in (*asked, *known) if not lower_is_better(m)]
    down = [m for m in (*asked, *known) if lower_is_better(m)]
    return (up[0], down[0]) if up and down else None


def _curve(
    seeds: Sequence[Mapping[str, Any]], pair: tuple[str, str]
) -> list[tuple[float, float, float]]:
    """Scale, alignment and distance of every point."""

    def mean(number: int, measure: str) -> float:
        return _mean(seed["points"][number]["measures"][measure]["value"] for seed in seeds)

    return [
        (point["scale"], mean(n, pair[0]), mean(n, pair[1]))
        for n, point in enumerate(seeds[0]["points"])
    ]


def _guidance(
    curves: Mapping[str, list[tuple[float, float, float]]],
    pair: tuple[str, str],
    axes: Axes,
    colours: Colours,
) -> None:
    highest = max(curves, key=lambda label: np.mean([y for _, _, y in curves[label]]))
    for number, (label, points) in enumerate(curves.items()):
        strong, marker = series(colours, number)
        x, y = [p[1] for p in points], [p[2] for p in points]
        axes.plot(x, y, color=strong, marker=marker, markersize=6, linewidth=1.8, label=label)
        side = -1 if label == highest else 1
        for w, at_x, at_y in points:
            axes.annotate(
                f"{w:g}", (at_x, at_y), xytext=(5 * side, -5 * side), textcoords="offset points",
                ha="left" if side > 0 else "right", va="top" if side > 0 else "bottom",
                color=strong, fontsize=10.5,
            )  # fmt: skip
    axes.grid()
    axes.margins(0.12)
    axis.few(axes.xaxis)
    axis.few(axes.yaxis)
    axes.set_xlabel(f"{measure_label(pair[0])} →")
    axes.set_ylabel(f"← {measure_label(pair[1])}")


# -- time ------------------------------------------------------------------------------------------

SECONDS = {
    "seconds per picture": "seconds_picture",
    "seconds per evaluation": "seconds_evaluation",
    "parameters in use": "parameters_active",
    "parameters stored": "parameters_stored",
    "FLOPs per picture": "flops_picture",
}


def seconds(source: Source, name: str, figure: Figure) -> Shown:
    """Time to draw a picture against the parameters that are stored."""
    panels, records, notes, missing = [], list[dict[str, Any]](), dict[str, None](), list[str]()
    for where, at in places(source.study, figure):
        found = runs(source, figure, at, "seconds", missing)
        rows = []
        for label, seeds in found.items():
            values = {key: float(np.median([s[of] for s in seeds])) for key, of in SECONDS.items()}
            whole = {k: int(v) if "parameters" in k else v for k, v in values.items()}
            rows.append(_first(where, model=label, **whole))
            notes[_machine(seeds[0]["machine"])] = None
        records += rows
        if rows:
            panels.append(
                Panel(
                    title=where,
                    describes="Time against capacity: "
                    + "; ".join(
                        f"{r['model']} {r['seconds per picture']:.3g} s, "
                        f"{axis.compact(r['parameters stored'])} parameters"
                        for r in rows
                    ),
                    draw=partial(_seconds, rows),
                    height=230,
                    legend=True,
                )
            )
    return Shown(
        name=name, title=figure.title, says=figure.says, panels=tuple(panels),
        records=tuple(records), missing=tuple(missing), notes=tuple(notes),
    )  # fmt: skip


def _machine(machine: Mapping[str, Any]) -> str:
    threads = machine["threads"]
    return (
        f"Medians on {machine['device']}, {threads} thread{'s' * (threads != 1)}, "
        f"torch {machine['torch']}."
    )


def _seconds(rows: Sequence[Mapping[str, Any]], axes: Axes, colours: Colours) -> None:
    for number, row in enumerate(rows):
        strong, marker = series(colours, number)
        axes.plot(
            [row["parameters stored"]], [row["seconds per picture"] * 1000], linestyle="",
            marker=marker, markersize=9, color=strong, label=row["model"],
        )  # fmt: skip
    axis.numbers(axes, sorted({row["parameters stored"] for row in rows}))
    axes.margins(0.12)
    axes.set_ylim(bottom=0, top=1.15 * max(row["seconds per picture"] * 1000 for row in rows))
    axes.grid()
    axes.set_xlabel("stored parameters")
    axes.set_ylabel("milliseconds per picture")
