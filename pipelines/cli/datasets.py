"""Verbs for embedded data sets: ``ediffi data …``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.app import (
    DEFAULT_STORAGE,
    AsJson,
    Storage,
    app,
    echo,
    echo_found,
    existing_store,
)
from pipelines.cli.sample_output import check_file

data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data", help="Inspect embedded data sets: statistics and pictures.")

VersionName = Annotated[
    str,
    typer.Argument(
        metavar="VERSION",
        help="A split (train or validation) in its latest version, or a version's folder in the "
        "store.",
    ),
]


@data_app.command(epilog="Example:  ediffi data stats train --quarantined 10")
def stats(
    version: VersionName = "train",
    quarantined: Annotated[
        int,
        typer.Option(
            "--quarantined", metavar="N", min=0, help="Also list the first N quarantined rows."
        ),
    ] = 0,
    faults: Annotated[int | None, typer.Option("--faults", min=0, hidden=True)] = None,
    storage: Storage = DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """Show what an embedded data set holds, and what was left out.

    Rows, captions, sizes and token lengths, and the number of quarantined rows by reason.
    """
    from pipelines.data import stats as of

    if faults is not None:
        echo("ediffi: warning: --faults is now --quarantined", err=True)
        quarantined = quarantined or faults
    embedded = of.find(existing_store(storage), version)
    found = of.summarize(embedded)
    listed = of.quarantined_rows(embedded, quarantined) if quarantined else None
    told = found | ({"faults": listed} if quarantined else {})
    echo_found(told, lambda _: of.render(found, listed), as_json)


@data_app.command(epilog="Example:  ediffi data show train -n 16 -o grid.png")
def show(
    version: VersionName = "train",
    n: Annotated[
        int, typer.Option("-n", "--n", metavar="N", min=1, help="Number of pictures.")
    ] = 16,
    resolution: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            min=1,
            help="Show the pictures of the stage with this resolution.",
            show_default="the largest",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="PNG file to write.")
    ] = Path("grid.png"),
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Draw pictures of an embedded data set with their captions."""
    from pipelines.data import contact_sheet
    from pipelines.data.stats import find
    from pipelines.formatting import join_words
    from pipelines.layout import FONT_FAMILIES, count_missing_glyphs

    check_file(output)
    found = find(existing_store(storage), version).version
    sides = sorted(found.header.resolutions)
    side = resolution or sides[-1]
    if side not in sides:
        raise ValueError(
            f"the data set has pictures of {join_words(sides, 'and')} pixels, none of {side}; "
            f"choose --resolution {join_words(sides, 'or')}"
        )
    pairs = contact_sheet.samples(found, side, n)
    rows = int(found.usable(side).sum())
    title = f"{found.folder.rpartition('/')[2]}: {len(pairs):,} of {rows:,} pictures of side {side}"
    contact_sheet.draw_sheet(pairs, title).save(output)
    echo(f"{output}: {len(pairs)} picture{'s' * (len(pairs) > 1)}")
    if boxes := count_missing_glyphs(p.caption for p in pairs):
        known = " or ".join(FONT_FAMILIES[1:3])
        echo(
            f"ediffi: warning: no installed font has all letters of {boxes} captions, which are "
            f"drawn with empty boxes; install {known}",
            err=True,
        )
