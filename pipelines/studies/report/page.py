"""The report as one HTML page that loads nothing."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from pipelines.reports.templates import page_template
from pipelines.studies.report import theme
from pipelines.studies.report.content import Report, rows_of, worded
from pipelines.studies.report.shown import Shown

SMALL = 416
"""Width in pixels below which a sheet is enlarged, with its pixels as squares."""


def html(report: Report) -> str:
    """Render the page; the same report gives the same bytes."""
    sections = [
        {
            "anchor": f"part-{number}",
            "title": section.title,
            "text": prose(section.text),
            "claims": report.claim_rows(section.claims),
            "figures": [_figure(report.figures[name]) for name in section.figures],
        }
        for number, section in enumerate(report.sections(), 1)
    ]
    return page_template("studies/report").render(
        worded=worded,
        title=report.title,
        asks=prose(report.results.study.asks),
        font=theme.FONT,
        colours=theme.css(),
        tiles=report.tiles(),
        contents=_contents(report, sections),
        claims=report.claim_rows(),
        lost=report.lost(),
        sections=sections,
        cost=report.cost(),
        experiments=report.experiments(),
        provenance=list(report.provenance.items()),
    )


def _contents(report: Report, sections: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return [
        *([("claims", "Claims")] if report.claims else []),
        ("lost", "What lost"),
        *((section["anchor"], section["title"]) for section in sections),
        ("cost", "What each side cost"),
        ("run", "What was run"),
        ("provenance", "Provenance"),
    ]


def _figure(figure: Shown) -> dict[str, Any]:
    return {
        "name": figure.name,
        "title": figure.title,
        "says": prose(figure.says),
        "panels": figure.svgs,
        "pictures": [
            {
                "caption": picture.caption,
                "small": picture.width < SMALL,
                "address": "data:image/png;base64," + base64.b64encode(picture.png).decode(),
            }
            for picture in figure.pictures
        ],
        "columns": min(figure.columns, len(figure.pictures)) or 1,
        "notes": figure.notes,
        "missing": figure.missing,
        "empty": not (figure.panels or figure.pictures or figure.records),
        "as_table": figure.as_table,
        "best": figure.best_cells(),
        "rows": rows_of(figure) if figure.records else [],
    }


def prose(markdown: str) -> str:
    """Markdown as HTML, with its headings below the page's, and without raw HTML or pictures."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = parser.parse(markdown)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
    return str(parser.renderer.render(tokens, parser.options, {})).strip()
