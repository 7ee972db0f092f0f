"""Write a study's report into a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ediffi_core.noise import NoiseDistribution
from pipelines.studies.claims import Finding
from pipelines.studies.report import content, page, text, theme
from pipelines.studies.report.content import Report
from pipelines.studies.report.figures import prepared
from pipelines.studies.report.shown import Shown, Source
from pipelines.studies.results import Results

PAGE, MARKDOWN, NUMBERS, FIGURES = "report.html", "report.md", "results.json", "figures"
ROWS_FROM = 3
"""Depth in a JSON file from which a value is written on one line."""


def write(
    results: Results,
    claims: Sequence[Finding],
    folder: Path,
    provenance: Mapping[str, str],
    *,
    noise: NoiseDistribution | None = None,
    read: Callable[[str], bytes | None] = lambda path: None,
) -> Report:
    """Write ``report.html``, ``report.md``, ``results.json`` and ``figures/``.

    The same arguments give the same bytes. Figures of an earlier report in the folder are removed.

    Args:
        claims: from :func:`pipelines.studies.claims.find`.
        provenance: name → value, shown at the end in this order: the commit, the date, the machine.
        noise: p(σ) of the study's stage, for axes of σ; shares of p(σ) without it.
        read: reads a file of the store, for sheets of samples; None if it is missing.
    """
    source = Source(results=results, noise=noise, read=read)
    report = Report(results=results, claims=claims, figures=prepared(source), provenance=provenance)
    figures = folder / FIGURES
    figures.mkdir(parents=True, exist_ok=True)
    for old in figures.iterdir():
        if old.suffix in (".svg", ".png", ".json"):
            old.unlink()
    for figure in report.figures.values():
        _write_figure(figure, figures)
    (folder / PAGE).write_text(page.html(report), encoding="utf-8")
    (folder / MARKDOWN).write_text(text.markdown(report), encoding="utf-8")
    (folder / NUMBERS).write_text(dumped(content.data(report)) + "\n", encoding="utf-8")
    return report


def _write_figure(figure: Shown, folder: Path) -> None:
    for number, (panel, svg) in enumerate(zip(figure.panels, figure.svgs), 1):
        name = f"{figure.name}-{number}"
        (folder / f"{name}.svg").write_text(theme.alone(svg), encoding="utf-8")
        (folder / f"{name}.png").write_bytes(theme.png(panel))
    for number, picture in enumerate(figure.pictures, 1):
        (folder / f"{figure.name}-{number}.png").write_bytes(picture.png)
    path = folder / f"{figure.name}.json"
    path.write_text(dumped(figure.data()) + "\n", encoding="utf-8")


def dumped(value: Any, depth: int = 0) -> str:
    """JSON whose rows stand on a line each."""
    if not isinstance(value, list | dict) or not value:
        return json.dumps(value, ensure_ascii=False)
    if depth >= ROWS_FROM or (isinstance(value, dict) and depth and not _has_rows(value)):
        return json.dumps(value, ensure_ascii=False)
    pad = " " * (depth + 1)
    if isinstance(value, dict):
        lines = [f"{json.dumps(k, ensure_ascii=False)}: {dumped(v, depth + 1)}"
                 for k, v in value.items()]  # fmt: skip
    else:
        lines = [json.dumps(v, ensure_ascii=False) for v in value]
    body = f",\n{pad}".join(lines)
    left, right = ("{", "}") if isinstance(value, dict) else ("[", "]")
    return f"{left}\n{pad}{body}\n{' ' * depth}{right}"


def _has_rows(value: Mapping[str, Any]) -> bool:
    return any(isinstance(v, list | dict) for v in value.values())
