"""The verb for averages of the weights: ``ediffi ema``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.app import (
    DEFAULT_STORAGE,
    AsJson,
    ModelName,
    Storage,
    app,
    echo,
    echo_found,
    writable,
)


@app.command(
    epilog="\b\nExamples:\n  ediffi ema emoji-scenes\n"
    "  ediffi ema emoji-scenes --length 0.03,0.05,0.1,0.2 --plot lengths.png\n"
    "  ediffi ema emoji-scenes --write 0.1 -o longer.json"
)
def ema(
    model: ModelName,
    lengths: Annotated[
        list[str] | None,
        typer.Option(
            "--length",
            metavar="L[,L...]",
            help="Measure averages of these lengths: σ_rel, from 0 to 0.288.",
            show_default="list the snapshots only",
        ),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The stage.",
            show_default="all for the list, else the base",
        ),
    ] = None,
    draws: Annotated[
        int,
        typer.Option(
            metavar="N", min=2, help="Draws per expert: a validation picture, a σ and its noise."
        ),
    ] = 1024,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also draw the gains as a PNG.", show_default="no picture"
        ),
    ] = None,
    write: Annotated[
        float | None,
        typer.Option(
            metavar="LENGTH",
            help="Write the ensemble with this length for the stage's sampling.",
            show_default="write nothing",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="File that --write writes.")
    ] = Path("ensemble.json"),
    storage: Storage = DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """Find the best length of the weights' average after training.

    Lists the snapshots that training wrote with `snapshot_images`. With --length, measures the
    denoising loss of every expert with averages of these lengths, made from its snapshots. With
    --write, writes an ensemble.json that `ediffi sample` takes.
    """
    from pipelines.lineage.lookup import find_model

    wanted = parse_lengths(lengths or ())
    if plot is not None:
        if not wanted:
            raise ValueError("--plot shows what --length measures; write --length 0.05,0.1,0.2")
        if plot.suffix.lower() != ".png":
            raise ValueError(f"--plot draws a PNG; end the name of {plot} in .png")
        writable(plot, "--plot")
    if write is not None:
        if output.suffix != ".json":
            raise ValueError(f"{output} is no file for an ensemble; end its name in .json")
        writable(output)
    place = find_model(model, storage)
    from pipelines.models import averages
    from pipelines.models.manifest import read_manifest

    manifest = read_manifest(place, storage)
    names = [s["name"] for s in manifest["stages"]]
    if stage is not None and stage not in names:
        raise ValueError(f"there is no stage {stage!r}; the cascade has {', '.join(names)}")
    from pipelines.reports import averages as report
    from pipelines.store.artifacts import Store

    store = Store.at(manifest["store"])
    changed = None
    if write is not None:
        changed = averages.with_length(store, manifest, stage or names[0], write)
    if wanted:
        import torch

        from pipelines.steps import ema_losses

        found = ema_losses.measure(
            store,
            manifest,
            stage or names[0],
            wanted,
            draws=draws,
            device="cuda" if torch.cuda.is_available() else "cpu",
        ).data()
        echo_found(found, report.losses_text, as_json)
        if plot is not None:
            plot.write_bytes(report.plot(found))
            echo(f"{plot}: the gains by length", err=as_json)
    elif changed is None:
        found = report.listing(store, manifest, [stage] if stage else names)
        echo_found(found, report.listing_text, as_json)
    if changed is not None:
        output.write_text(json.dumps(changed, indent=1, sort_keys=True))
        echo(
            f"{output}: {stage or names[0]} draws with averages of length {write:g}; "
            f'try `ediffi sample {output} "a prompt"`',
            err=as_json,
        )


def parse_lengths(given: list[str] | tuple[()]) -> list[float]:
    """Lengths of averages from ``0.05,0.1`` and repeated options, in order, each once.

    Raises:
        ValueError: One is no number, or lies outside (0, 0.288).
    """
    from ediffi_core.ema_length import gamma_of

    found = []
    for text in (part.strip() for option in given for part in option.split(",")):
        try:
            length = float(text)
        except ValueError:
            raise ValueError(
                f"--length {text!r} is not a number; write --length 0.05,0.1"
            ) from None
        gamma_of(length)
        found.append(length)
    return list(dict.fromkeys(found))
