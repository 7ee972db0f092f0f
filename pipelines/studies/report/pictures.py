"""Figures of samples: sheets side by side."""

from __future__ import annotations

from pipelines.spec.study import Figure
from pipelines.studies.report.shown import Picture, Record, Shown, Source, places

MOST_COLUMNS = 4


def pictures(source: Source, name: str, figure: Figure) -> Shown:
    """The sheet of samples of each model at each place, of the first seed that has one."""
    found, records, missing = [], list[Record](), list[str]()
    for where, at in places(source.study, figure):
        for label, model in figure.models.items():
            caption = ", ".join(part for part in (label, where) if part)
            groups = source.results.models(model, at)
            if not groups:
                missing.append(f"{caption}: no finished cell")
                continue
            seed, group = next(iter(groups.items()))
            png = source.read(group.pictures) if group.pictures else None
            if png is None:
                missing.append(f"{caption}: the store has no sheet {group.pictures}")
                continue
            found.append(Picture(caption=caption, png=png))
            records.append({"model": caption, "seed": seed, "sheet": group.pictures})
    if not figure.models:
        missing.append("the figure names no `models:` whose samples to show")
    return Shown(
        name=name, title=figure.title, says=figure.says, pictures=tuple(found),
        columns=min(len(figure.models), MOST_COLUMNS),
        records=tuple(records), missing=tuple(missing),
    )  # fmt: skip
