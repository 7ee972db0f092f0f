"""Figures of gradients: how alike noise levels are, beside what experts gained there."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.spec.study import Figure, Model
from pipelines.studies.report import effects
from pipelines.studies.report.shown import At, Record, Shown, Source, places
from pipelines.studies.report.theme import Colours, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STRONGEST = 0.64
"""Opacity of a cosine of 1, which leaves its number legible."""

MOST_NUMBERED = 10
"""Most noise levels whose cosines are written into the map."""

Matrix = NDArray[np.float64]


def gradients(source: Source, name: str, figure: Figure) -> Shown:
    """A map of cosines for each model and place, and the gain by noise level below it."""
    panels, records, missing = [], list[Record](), list[str]()
    corrected = False
    for where, at in places(source.study, figure):
        for label, model in (figure.models or {"": Model(group="root")}).items():
            stored = _stored(source, model, at)
            title = ", ".join(part for part in (where, label) if part)
            if not stored:
                missing.append(f"{title or model.group}: no gradients of {model.group}")
                continue
            cosine, is_corrected = _cosine(stored)
            corrected |= is_corrected
            names = _names(source, stored[0])
            for row, values in zip(names, cosine):
                first: dict[str, Any] = {"at": title} if title else {}
                records.append({**first, "σ": row, **dict(zip(names, map(float, values)))})
            near, far = float(np.mean(np.diag(cosine, 1))), float(cosine[0, -1])
            panels.append(
                Panel(
                    title=f"{title}: cosine of gradients" if title else "cosine of gradients",
                    describes=f"Cosine of gradients between {len(names)} noise levels; neighbours "
                    f"{near:.2g} on average, lowest against highest {far:.2g}",
                    draw=partial(_map, cosine, names),
                    height=310,
                )
            )
    below = effects.gain_by_noise(source, name, figure) if figure.comparisons else None
    gained = [replace(p, title=f"{p.title}: gain" if p.title else "gain")
              for p in (below.panels if below else ())]  # fmt: skip
    kind = "corrected for the noise of few pictures" if corrected else "as measured"
    return Shown(
        name=name, title=figure.title, says=figure.says,
        panels=(*panels, *gained),
        records=(*records, *(below.records if below else ())),
        missing=(*missing, *(below.missing if below else ())),
        notes=(f"Cosine of the loss's gradients between equal shares of p(σ), {kind}; blue agree, "
               "orange oppose each other.", *(below.notes if below else ()))
        if panels or gained else (),
    )  # fmt: skip


def _stored(source: Source, model: Model, at: At) -> list[dict[str, Any]]:
    """What the cells of all seeds stored."""
    cells = source.results.at(source.study.place(at, model.at)).values()
    key = f"gradients/{model.group}"
    return [cell.measurements[key] for cell in cells if key in cell.measurements]


def _cosine(stored: list[dict[str, Any]]) -> tuple[Matrix, bool]:
    """Mean over seeds of the corrected cosines; of the plain ones if a correction is lacking."""
    for key in ("corrected", "cosine"):
        if all(key in one for one in stored):
            values = np.array([one[key] for one in stored], dtype=np.float64)
            if key == "cosine" or np.isfinite(values).all():
                mean: Matrix = values.mean(0)
                return mean, key == "corrected"
    raise ValueError("gradients.json has no cosines; remove its node's folder and run again")


def _names(source: Source, stored: dict[str, Any]) -> list[str]:
    """Names of noise levels: the σ in the middle of the share, or its number."""
    quantiles = stored["quantiles"]
    if source.noise is None:
        return [f"{n}/{len(quantiles)}" for n in range(1, len(quantiles) + 1)]
    return [f"{source.noise.sigma_at((low + high) / 2):.2g}" for low, high in quantiles]


def _map(cosine: Matrix, names: list[str], axes: Axes, colours: Colours) -> None:
    from matplotlib.patches import Rectangle

    count = len(names)
    for i in range(count):
        for j in range(count):
            value = float(cosine[i, j])
            if not math.isfinite(value):
                continue
            cell = Rectangle(
                (j - 0.48, i - 0.48), 0.96, 0.96, linewidth=0,
                facecolor=colours["s0" if value >= 0 else "s1"],
                alpha=STRONGEST * min(abs(value), 1.0),
            )  # fmt: skip
            axes.add_patch(cell)
            if count <= MOST_NUMBERED:
                axes.text(j, i, _short(value), ha="center", va="center", fontsize=10)
    every = 1 if count <= MOST_NUMBERED else math.ceil(count / 8)
    ticks = range(0, count, every)
    axes.set_xticks(ticks, [names[n] for n in ticks])
    axes.set_yticks(ticks, [names[n] for n in ticks])
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(-0.5, count - 0.5)
    axes.set_aspect("equal")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    label = "noise level σ" if "/" not in names[0] else "share of p(σ)"
    axes.set_xlabel(label)
    axes.set_ylabel(label)


def _short(value: float) -> str:
    """A cosine in two digits: ``.97``, ``−.12``, ``1``."""
    text = f"{value:.2f}"
    if text in ("1.00", "-1.00"):
        return text[:-3].replace("-", "−")
    return text.replace("0.", ".").replace("-", "−")
