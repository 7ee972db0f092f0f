"""The report as Markdown, for a repository's page: pictures are files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pipelines.studies.report.content import Report, rows_of, worded
from pipelines.studies.report.shown import Shown

PANEL_WIDTH = 420
"""Width of a panel in pixels: two stand side by side, on a phone one above the other."""

CLAIM_COLUMNS = {
    "verdict": "verdict",
    "says": "claim",
    "gain": "gain, 95 % interval",
    "relative": "relative",
    "count": "seeds × pictures",
    "p": "adjusted p",
}


def markdown(report: Report) -> str:
    """The report's text; figures are in ``figures/``."""
    study = report.results.study
    tiles = " · ".join(f"**{value}** {name}" for value, name in report.tiles())
    parts = [f"# {study.title}", study.asks.strip(), tiles]
    if report.claims:
        parts += [
            "## Claims",
            "A gain above zero means that the first model is better. Intervals are over seeds and "
            "pictures; p-values are adjusted for the number of claims (Holm).",
            _claims(report.claim_rows()),
        ]
    lost = "\n".join(f"- {_plain(line)}" for line in report.lost())
    parts += ["## What lost", lost or "No claim was refuted, and no interval is below zero."]
    for section in report.sections():
        parts += [f"## {section.title}", section.text.strip()]
        rows = report.claim_rows(section.claims)
        parts += [_claims(rows)] if rows else []
        for name in section.figures:
            parts += _figure(report.figures[name])
    parts += [
        "## What each side cost",
        "Left of the stroke is the first model of a comparison. Images and parameters in use "
        "should be equal for a comparison at equal cost; ≠ marks where they are not.",
        table(report.cost()),
        "## What was run",
        table(report.experiments()),
        "## Provenance",
        "\n".join(f"- {key}: {value}" for key, value in report.provenance.items()),
        "[results.json](results.json) has the numbers.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _claims(rows: Sequence[dict[str, str]]) -> str:
    cells = []
    for row in rows:
        why = f" ({row['why']})" if row["why"] else ""
        shown = {**row, "verdict": f"{row['mark']} {row['verdict']}", "says": row["says"] + why}
        cells.append([shown[key] for key in CLAIM_COLUMNS])
    return table([list(CLAIM_COLUMNS.values()), *cells])


def _figure(figure: Shown) -> list[str]:
    parts = [f"### {figure.title}"]
    pictures = [
        f'<a href="figures/{figure.name}-{n}.svg"><img src="figures/{figure.name}-{n}.png" '
        f'width="{PANEL_WIDTH}" alt="{escape(panel.describes, quote=True)}"></a>'
        for n, panel in enumerate(figure.panels, 1)
    ]
    parts.append("\n".join(pictures))
    parts += [
        f"![Samples of {_plain(picture.caption)}](figures/{figure.name}-{n}.png)\n\n"
        f"{picture.caption}"
        for n, picture in enumerate(figure.pictures, 1)
    ]
    if figure.as_table and figure.records:
        rows = rows_of(figure)
        for row, column in figure.best_cells():
            rows[row + 1][column] = f"**{rows[row + 1][column]}**"
        parts.append(table(rows))
    if figure.missing:
        parts.append("\n".join(["Not shown:", "", *(f"- {line}" for line in figure.missing)]))
    parts += [*figure.notes, figure.says.strip()]
    if figure.records:
        parts.append(f"[Data](figures/{figure.name}.json)")
    return parts


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column and those of words are aligned to the left."""
    head, *body = rows
    left = {0, *worded(rows)}
    rule = ["---" if n in left else "--:" for n in range(len(head))]
    lines = [[_plain(cell) for cell in head], rule, *([_plain(c) for c in row] for row in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """A text that stands in a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")
