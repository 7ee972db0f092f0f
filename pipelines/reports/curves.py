"""Quality–alignment curves: a picture, the same numbers as JSON, and a page with the table."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ediffi_core.distances import Measured
from pipelines.evaluation import sweep
from pipelines.evaluation.curve import Curve, Line, best, lower_is_better

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
"""Okabe and Ito's, which colour-blind people can tell apart, in an order of contrast."""

MARKERS = "osD^vPX"
MOST_LABELS = 12
"""Most points of a line that are labelled; of more, some in between are not."""

INK, GRID = "#222222", "#DDDDDD"


def write(curve: Curve, folder: Path) -> None:
    """Write a report: ``curve.png``, ``points.json`` and ``README.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "curve.png").write_bytes(png(curve))
    (folder / "points.json").write_text(json.dumps(curve.to_json(), indent=1))
    (folder / "README.md").write_text(markdown(curve), encoding="utf-8")


# -- the picture -----------------------------------------------------------------------------------


def png(curve: Curve) -> bytes:
    """The picture of a curve as PNG."""
    target = io.BytesIO()
    figure(curve).savefig(target, format="png", dpi=160, metadata={"Software": None})
    return target.getvalue()


def figure(curve: Curve) -> Figure:
    """Plot alignment against distance: a line for each model, a labelled point for each setting."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(8, 5.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(made)
    axes = made.add_subplot()
    for number, line in enumerate(curve.lines):
        _draw(axes, curve, line, number)
    _decorate(axes, curve)
    rows = math.ceil(len(curve.lines) / 3)
    made.legend(loc="outside lower center", ncols=math.ceil(len(curve.lines) / rows), frameon=False)
    return made


def _draw(axes: Axes, curve: Curve, line: Line, number: int) -> None:
    from matplotlib.patheffects import withStroke

    colour = COLOURS[number % len(COLOURS)]
    x, y = ([p.measures[m] for p in line.points] for m in (curve.alignment, curve.distance))
    axes.errorbar(
        [v.value for v in x],
        [v.value for v in y],
        xerr=_whiskers(x),
        yerr=_whiskers(y),
        color=colour,
        ecolor=(*_rgb(colour), 0.35),
        elinewidth=1,
        linewidth=1.6,
        marker=MARKERS[number // len(COLOURS) % len(MARKERS)],
        markersize=5.5,
        markeredgecolor="white",
        label=line.label,
        zorder=3 + number,
    )
    every = math.ceil(len(line.points) / MOST_LABELS)
    for at, point in enumerate(line.points):
        if at % every and at != len(line.points) - 1:
            continue
        # Lines in turn have their labels on the right above and on the left below the points.
        side = 1 if number % 2 == 0 else -1
        axes.annotate(
            _short(point.setting.get(curve.along or "", "")),
            (x[at].value, y[at].value),
            xytext=(5 * side, 5 * side),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="bottom" if side > 0 else "top",
            color=colour,
            fontsize=8.5,
            zorder=20,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def _decorate(axes: Axes, curve: Curve) -> None:
    axes.set_title(curve.title, loc="left", color=INK, fontsize=11)
    axes.set_xlabel(_axis_label(curve.alignment))
    axes.set_ylabel(_axis_label(curve.distance))
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.06)
    if curve.along:
        note = {
            sweep.GUIDANCE: "numbers at points: guidance scale w",
            sweep.STEPS: "numbers at points: sampling steps",
        }[curve.along]
        axes.text(
            1, 1.01, f"{note}; whiskers: 95 %", transform=axes.transAxes, ha="right", va="bottom",
            color="#666666", fontsize=8.5,
        )  # fmt: skip


TITLES = {
    "kernel_distance": "kernel distance (KID)",
    "clip_score": "CLIP score",
    "fid": "FID",
    "kid": "KID",
    "cmmd": "CMMD",
}


def _axis_label(measure: str) -> str:
    name, _, features = measure.partition("/")
    of = f" ({features})" if features else ""
    better = "lower" if lower_is_better(measure) else "higher"
    return f"{TITLES.get(name, name)}{of}, {better} is better"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _whiskers(values: Sequence[Measured]) -> list[list[float]]:
    """Lengths of the whiskers below and above each value; 0 where an end is infinite."""
    ends = [[v.value - v.low for v in values], [v.high - v.value for v in values]]
    return [[length if math.isfinite(length) else 0.0 for length in some] for some in ends]


def _rgb(colour: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(colour)


# -- the page --------------------------------------------------------------------------------------


def markdown(curve: Curve, picture: str = "curve.png", points: str = "points.json") -> str:
    """The page of a report: the picture, the command, and a table of all measures."""
    names = list(dict.fromkeys(m for line in curve.lines for p in line.points for m in p.measures))
    swept = list(dict.fromkeys(k for line in curve.lines for p in line.points for k in p.setting))
    rows = [["model", *swept, *(f"{m} {_arrow(m)}" for m in names)]]
    for line in curve.lines:
        for point in line.points:
            settings = [_short(point.setting.get(key, "")) for key in swept]
            values = [_shown(point.measures[m]) if m in point.measures else "–" for m in names]
            rows.append([line.model, *settings, *values])
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    best_lines = []
    for line in curve.lines if curve.along else ():
        one = best(line.points, curve.alignment, curve.distance)
        best_lines.append(f"- {line.label}: {sweep.label(one.setting)}")
    parts = [
        f"# {curve.title}",
        f"![{_axis_label(curve.alignment)}; {_axis_label(curve.distance)}]({picture})",
        f"```\n{curve.command}\n```",
        "\n".join(f"- {key}: {value}" for key, value in curve.about.items()),
        "\n".join([head, "|" + "---|" * len(rows[0]), *body]),
        "In brackets: 95 % intervals, by pictures. All points have the same captions and seeds, so "
        "differences between points are better known than the intervals suggest.",
    ]
    if best_lines:
        parts += [
            f"Best setting of each line: the highest {curve.alignment} of the points whose "
            f"{curve.distance} is within the interval of the lowest one.",
            "\n".join(best_lines),
        ]
    parts.append(f"[{points}]({points}) has the numbers.")
    return "\n\n".join(parts) + "\n"


def _shown(value: Measured) -> str:
    text = f"{value.value:.3f}"
    if not math.isfinite(value.high - value.low):
        return text
    return f"{text} [{value.low:.3f}, {value.high:.3f}]"


def _arrow(measure: str) -> str:
    return "↓" if lower_is_better(measure) else "↑"
