"""The verb that writes a trained ensemble for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.cli.app import DEFAULT_STORAGE, ModelName, Storage, app, echo


@app.command(
    epilog="\b\nExamples:\n  ediffi export emoji-scenes --diffusers emoji-scenes-model\n"
    "  ediffi export emoji-scenes@champion --diffusers emoji-scenes-model "
    "--dtype bfloat16 --license cc-by-4.0"
)
def export(
    model: ModelName,
    diffusers: Annotated[
        Path,
        typer.Option(
            "--diffusers", metavar="FOLDER", help="Folder to write, in the layout of diffusers."
        ),
    ],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(
            metavar="TYPE",
            help="Type of the weights in the files: float32, bfloat16 or float16. The latter two "
            "halve the folder.",
        ),
    ] = "float32",
    residency: Annotated[
        Literal["all", "current", "disk"],
        typer.Option(
            metavar="WHERE",
            help="Where the loaded folder keeps its experts: all on the device; only the current "
            "one, with the others in memory (current) or on disk (disk).",
        ),
    ] = "all",
    encoders: Annotated[
        Literal["copy", "name"],
        typer.Option(
            metavar="HOW",
            help="Copy published encoders into the folder (copy), or name them there, so that they "
            "are downloaded when the folder is loaded (name).",
        ),
    ] = "copy",
    license: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="License of the weights, for the model card, such as apache-2.0.",
            show_default="other, with a note that it is unknown",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier export in that folder.")
    ] = False,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Export a trained ensemble as a folder for diffusers."""
    from pipelines.lineage.lookup import find_model

    manifest = find_model(model, storage)
    from pipelines.formatting import byte_size
    from pipelines.interchange.export import Options, export

    options = Options(
        dtype=dtype,
        residency=residency,
        reference_encoders=encoders == "name",
        license=license,
    )
    size = export(
        manifest,
        diffusers,
        options,
        force=force,
        progress=lambda part: echo(f"  {part}"),
        storage=storage,
    )
    echo(f"{diffusers}: {byte_size(size)}; how to load it is in {diffusers / 'README.md'}")
