"""Verbs that look at embedded data sets: ``ediffi data …``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.app import DEFAULT_STORAGE, AsJson, Storage, app, writable

data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data", help="Looks at embedded data sets: numbers and pictures.")

VersionName = Annotated[
    str, typer.Argument(metavar="[VERSION]", help="An embed node's name, or a folder of the store.")
]


@data_app.command(epilog="Example:  ediffi data stats train --faults 10")
def stats(
    version: VersionName = "train",
    faults: Annotated[int, typer.Option(min=0, help="List so many quarantined rows.")] = 0,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Says what an embedded data set holds, and what it left out."""
    from pipelines.data import stats as of
    from pipelines.store.artifacts import Store

    embedded = of.find(Store.at(storage or DEFAULT_STORAGE), version)
    found = of.summarize(embedded)
    listed = of.quarantined_rows(embedded, faults) if faults else None
    if as_json:
        typer.echo(json.dumps(found | ({"faults": listed} if faults else {}), indent=1))
    else:
        typer.echo(of.render(found, listed))


@data_app.command(epilog="Example:  ediffi data show train -n 16 -o grid.png")
def show(
    version: VersionName = "train",
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="Pictures.")] = 16,
    resolution: Annotated[
        int | None, typer.Option(min=1, help="Of which stage; else the largest pictures.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG to write.")] = Path(
        "grid.png"
    ),
    storage: Storage = None,
) -> None:
    """Draws pictures of an embedded data set with their captions."""
    from pipelines.data import contact_sheet
    from pipelines.data.stats import find
    from pipelines.store.artifacts import Store

    writable(output)
    found = find(Store.at(storage or DEFAULT_STORAGE), version).version
    side = resolution or max(found.header.resolutions)
    pairs = contact_sheet.samples(found, side, n)
    rows = int(found.usable(side).sum())
    title = f"{found.folder.rpartition('/')[2]}: {len(pairs):,} of {rows:,} pictures of side {side}"
    contact_sheet.draw_sheet(pairs, title).save(output)
    typer.echo(f"{output}: {len(pairs)} picture{'s' * (len(pairs) > 1)}")
    if boxes := contact_sheet.count_missing_glyphs(pairs):
        known = " or ".join(contact_sheet.FONT_FAMILIES[1:3])
        typer.echo(
            f"{boxes} captions have letters that no font here has; install {known}", err=True
        )
