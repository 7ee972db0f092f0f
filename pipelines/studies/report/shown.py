"""What a figure shows: panels, pictures, and the numbers behind them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ediffi_core.noise import NoiseDistribution
from pipelines.evaluation.scores import lower_is_better
from pipelines.spec.study import Comparison, Figure, Model, Study
from pipelines.studies.report.theme import Panel, svg
from pipelines.studies.results import Results

DIGITS = 6
"""Significant digits of stored numbers."""

Record = Mapping[str, Any]
"""A row of a figure's data: column → value."""

At = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What figures are drawn from."""

    results: Results

    noise: NoiseDistribution | None = None
    """p(σ) of the study's stage; without it, noise levels are given as shares of p(σ)."""

    read: Callable[[str], bytes | None] = lambda path: None
    """Reads a file of the store; None if it is missing."""

    @property
    def study(self) -> Study:
        return self.results.study


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A sheet of samples."""

    caption: str
    png: bytes

    @property
    def width(self) -> int:
        """Width in pixels, from the PNG's header."""
        return int.from_bytes(self.png[16:20])


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A figure, ready to be written."""

    name: str
    title: str
    says: str = ""
    panels: tuple[Panel, ...] = ()
    pictures: tuple[Picture, ...] = ()

    columns: int = 1
    """Pictures side by side."""

    records: tuple[Record, ...] = ()
    """The data, one row each."""

    notes: tuple[str, ...] = ()
    """How to read it."""

    missing: tuple[str, ...] = ()
    """What could not be shown, and why."""

    as_table: bool = False
    """Whether the data is what the figure shows, rather than a supplement."""

    best: frozenset[tuple[int, str]] = field(default_factory=frozenset)
    """Row and column of the values to set in bold."""

    @cached_property
    def svgs(self) -> tuple[str, ...]:
        """The panels as SVG elements, drawn once."""
        return tuple(svg(panel, f"{self.name}-{n}") for n, panel in enumerate(self.panels, 1))

    def best_cells(self) -> set[tuple[int, int]]:
        """Row and column number of :attr:`best`."""
        columns = list(dict.fromkeys(key for record in self.records for key in record))
        return {(row, columns.index(name)) for row, name in self.best}

    def data(self) -> dict[str, Any]:
        """The figure's data as JSON."""
        found = {"title": self.title, "records": rounded(self.records)}
        return found | ({"missing": list(self.missing)} if self.missing else {})


def places(study: Study, figure: Figure) -> list[tuple[str, At]]:
    """Label and axes' values of everything that a figure is drawn for."""
    found = study.combinations(figure.each)
    return [(at_text(at), {**_texts(figure.at), **at}) for at in found]


def comparison_at(figure: Figure, comparison: Comparison, at: At) -> At:
    """A place as a comparison has it: its own ``at`` counts above the figure's, below ``each``."""
    own = {k: v for k, v in comparison.at.items() if k not in figure.each and k != figure.axis}
    return {**at, **_texts(own)}


def _texts(at: Mapping[str, str | int]) -> dict[str, str]:
    return {axis: str(value) for axis, value in at.items()}


def at_text(at: Mapping[str, str | int]) -> str:
    """Axes' values in words: ``emoji, width 64``."""
    return ", ".join(
        f"{axis} {value}" if str(value).replace(".", "").isdigit() else str(value)
        for axis, value in at.items()
    )


def model_label(model: Model) -> str:
    """A model in words: ``ensemble, width 64``."""
    return ", ".join(part for part in (model.group, at_text(model.at)) if part)


def comparison_label(comparison: Comparison) -> str:
    """A comparison's label, or its two models."""
    return comparison.label or (
        f"{model_label(comparison.mine)} against {model_label(comparison.theirs)}"
    )


MEASURES = {
    "val_loss": "validation loss",
    "val_loss/sampler": "validation loss at the sampler's noise levels",
    "kernel_distance": "kernel distance",
}


def measure_label(measure: str) -> str:
    """A measure in words."""
    head, _, part = measure.partition("/")
    if measure not in MEASURES and head == "val_loss" and "/" in part:
        number, _, count = part.partition("/")
        return f"validation loss, stratum {number} of {count} of p(σ)"
    return MEASURES.get(measure, measure)


def arrow(measure: str) -> str:
    """↓ if less is better, else ↑."""
    return "↓" if lower_is_better(measure) else "↑"


def in_percent(measure: str) -> bool:
    """Whether a gain is shown as a share of the other model's value: losses are; scores have units
    of their own."""
    return measure.partition("/")[0] == "val_loss"


def strata_edges(source: Source, strata: Sequence[str]) -> tuple[list[float], list[float], bool]:
    """Middles and inner edges of strata along x, and whether x is σ rather than a share of p(σ)."""
    count = len(strata)
    middles = [(i + 0.5) / count for i in range(count)]
    edges = [i / count for i in range(1, count)]
    if source.noise is None:
        return middles, edges, False
    at = source.noise.sigma_at
    return [at(q) for q in middles], [at(q) for q in edges], True


def seeds_text(seeds: Iterable[str]) -> str:
    """``5 seeds``, ``1 seed``."""
    count = len(list(seeds))
    return f"{count} seed{'s' * (count != 1)}"


def rounded(value: Any) -> Any:
    """JSON of a value with numbers of :data:`DIGITS` significant digits; NaN becomes None."""
    if isinstance(value, Mapping):
        return {str(key): rounded(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    if isinstance(value, bool | int | str | None):
        return value
    number = float(value)
    return float(f"{number:.{DIGITS}g}") if math.isfinite(number) else None


def shown_number(value: Any, key: str = "") -> str:
    """A value of a table as text; gains have a sign."""
    if value is None:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "–"
    if key.startswith("gain"):
        text = f"{value:+.3g}"
    elif value == round(value) or abs(value) >= 1e4:
        text = f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.4g}"
    else:
        text = f"{value:#.4g}"
    return text.replace("-", "−")
