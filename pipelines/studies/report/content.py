"""What the report says, as text and tables that the page and the Markdown file share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.spec.study import Section
from pipelines.studies.claims import Finding
from pipelines.studies.report import axes as axis
from pipelines.studies.report import cost, effects
from pipelines.studies.report.figures import Figures
from pipelines.studies.report.shown import Record, Shown, measure_label, shown_number
from pipelines.studies.results import Results

MARKS = {"supported": "✓", "refuted": "✗", "open": "?"}
"""Verdict → its sign, so that it is not told by colour alone."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A study's report, before it is laid out."""

    results: Results
    claims: Sequence[Finding]
    figures: Figures
    provenance: Mapping[str, str]

    @property
    def title(self) -> str:
        return self.results.study.title

    def tiles(self) -> list[tuple[str, str]]:
        """Numbers that sum up the study."""
        verdicts: list[str] = [claim.verdict for claim in self.claims]
        counts = [(str(verdicts.count(v)), f"{MARKS[v]} {v}") for v in MARKS] if verdicts else []
        cells = len(self.results.cells)
        seeds = len({cell.at["seed"] for cell in self.results.cells})
        return [*counts, (str(cells), "cells"), (str(seeds), "seeds")]

    def sections(self) -> list[Section]:
        """The study's parts, and one with the figures that none of them names."""
        study = self.results.study
        named = {name for section in study.report for name in section.figures}
        rest = [name for name in study.figures if name not in named]
        further = [Section(title="Further figures", figures=rest)] if rest else []
        return [*study.report, *further]

    def claim_rows(self, names: Sequence[str] | None = None) -> list[dict[str, str]]:
        """Claims as cells of a table; all of them, or those of some names."""
        return [claim_row(c) for c in self.claims if names is None or c.name in names]

    def lost(self) -> list[str]:
        """Refuted claims, and comparisons whose whole interval is below zero."""
        refuted = [f"{c.sentence} Refuted." for c in self.claims if c.verdict == "refuted"]
        rows = {
            _loss(record): None
            for figure in self.figures.values()
            for record in figure.records
            if "/" not in str(record.get("measure", "/")) and _is_loss(record)
        }
        return [*refuted, *rows]

    def cost(self) -> list[list[str]]:
        """What both sides of every comparison cost."""
        found = cost.table(self.results)
        has_at = any(row["at"] for row in found)
        head = ["comparison", *(["at"] if has_at else []), *cost.COUNTS.values(), "equal", "seeds"]
        rows = [head]
        for row in found:
            counts = [" | ".join(map(shown_number, row[name])) for name in cost.COUNTS.values()]
            at = [row["at"] or "–"] if has_at else []
            mark = "=" if row["equal"] else "≠"
            rows.append([row["comparison"], *at, *counts, mark, str(row["seeds"])])
        return rows

    def experiments(self) -> list[list[str]]:
        """The questions, and how many of their cells are finished."""
        rows = [["experiment", "question", "seeds", "cells finished"]]
        for row in cost.experiments(self.results):
            done = f"{row['finished']} of {row['cells']}"
            rows.append([row["experiment"], row["asks"], str(row["seeds"]), done])
        return rows


def claim_row(claim: Finding) -> dict[str, str]:
    """A claim as cells of a table."""
    row = {"verdict": claim.verdict, "mark": MARKS[claim.verdict], "says": claim.sentence}
    row |= {"gain": "–", "relative": "–", "count": "–", "p": "–"}
    reasons = [] if claim.margin is None else [f"margin ±{claim.margin:.2g}"]
    if (e := claim.effect) is not None:
        low, high = e.interval or (math.nan, math.nan)
        ends = f" [{shown_number(low, 'gain')}, {shown_number(high, 'gain')}]"
        row["gain"] = shown_number(e.mean, "gain") + (ends if e.interval else "")
        row["relative"] = "–" if e.relative is None else f"{shown_number(e.relative, 'gain')} %"
        row["count"] = f"{len(e.seeds)} × {e.pictures:,}"
        reasons += e.notes
    if claim.p_adjusted is not None:
        row["p"] = p_text(claim.p_adjusted)
    reasons += [claim.reason] if claim.reason else []
    return {**row, "why": "; ".join(reasons)}


def p_text(p: float) -> str:
    """A p-value: ``0.032``, or ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.995 else "1"


def _is_loss(record: Record) -> bool:
    high = record.get("gain high")
    return isinstance(high, float) and high < 0


def _loss(record: Record) -> str:
    """A lost comparison as a line of text."""
    along = [f"{k} {axis.compact(v)}" for k, v in record.items() if k not in effects.COLUMNS]
    where = ", ".join([*([record["at"]] if record.get("at") else []), *along])
    gain, low, high = (shown_number(record[k], "gain") for k in ("gain", "gain low", "gain high"))
    percent = record["gain %"]
    share = "" if percent is None else f", {shown_number(percent, 'gain')} %"
    return (
        f"{record['comparison']}{f' ({where})' if where else ''}: "
        f"{measure_label(record['measure'])} {gain} [{low}, {high}]{share}"
    )


def worded(rows: Sequence[Sequence[str]]) -> set[int]:
    """Columns of words, which are aligned to the left."""
    return {
        n for n, column in enumerate(zip(*rows[1:])) if any(cell[:1].isalpha() for cell in column)
    }


def rows_of(figure: Shown) -> list[list[str]]:
    """A figure's data as cells: one row a record, with the columns of all of them."""
    columns = list(dict.fromkeys(key for record in figure.records for key in record))
    return [columns] + [
        [shown_number(record[c], c) if c in record else "–" for c in columns]
        for record in figure.records
    ]


def data(report: Report) -> dict[str, Any]:
    """The report's numbers: claims, figures, costs, and means of all models by seed."""
    from pipelines.studies import claims
    from pipelines.studies.report.shown import rounded

    study = report.results.study
    return {
        "study": study.study,
        "title": study.title,
        "provenance": dict(report.provenance),
        "experiments": cost.experiments(report.results),
        "claims": rounded(claims.data(report.claims)),
        "cost": rounded(cost.table(report.results)),
        "figures": {name: figure.data() for name, figure in report.figures.items()},
        "models": rounded(_models(report.results)),
    }


def _models(results: Results) -> list[dict[str, Any]]:
    """Every evaluated group with its counts and the means of its scores, a value a seed."""
    import numpy as np

    gathered: dict[str, dict[str, Any]] = {}
    for cell in results.cells:
        at = {axis: value for axis, value in cell.at.items() if axis != "seed"}
        for name, group in cell.groups.items():
            row = gathered.setdefault(
                repr((at, name)),
                {"at": at, "group": name, "seeds": [], "images": group.images,
                 "parameters": group.parameters, "active_parameters": group.active_parameters,
                 "means": {}},
            )  # fmt: skip
            row["seeds"].append(cell.at["seed"])
            for measure, values in group.scores.items():
                known = values[~np.isnan(values)]
                mean = float(known.mean()) if len(known) else math.nan
                row["means"].setdefault(measure, []).append(mean)
    return list(gathered.values())
