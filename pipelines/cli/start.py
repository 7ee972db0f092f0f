"""Verbs to start with: write a spec for a data set, and check a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.cli.app import DEFAULT_STORAGE, AsJson, SomeStorage, app, echo, writable

Format = Literal["parquet", "folder", "coco", "webdataset"]


@app.command(
    epilog="\b\nExamples:\n  ediffi init my.yaml --data /data/pairs\n"
    "  ediffi init my.yaml --data s3://bucket/train --validation s3://bucket/val"
)
def init(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="The YAML file to write.")],
    data: Annotated[
        list[str],
        typer.Option(
            metavar="PATH",
            help="Folder, file or URL of image-caption pairs; repeat the option for several.",
        ),
    ],
    validation: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Validation data, likewise.",
            show_default="found by name (train/, val/), else the last files of --data",
        ),
    ] = None,
    format: Annotated[
        Format | None,
        typer.Option(
            metavar="FORMAT",
            help="Format of the data: parquet, folder, coco or webdataset.",
            show_default="found by the files' names",
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Column of the pictures.", show_default="found by name and type"
        ),
    ] = None,
    caption: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Column of the captions.", show_default="found by name and type"
        ),
    ] = None,
    urls: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="Host that pictures named by address may be fetched from; repeat the option for "
            "several.",
            show_default="none",
        ),
    ] = None,
    follow_links: Annotated[
        bool,
        typer.Option("--follow-links", help="Read files that links lead to outside of the data."),
    ] = False,
    t5: Annotated[
        str, typer.Option(metavar="NAME", help="T5 text encoder: its name, or its folder.")
    ] = "google/t5-v1_1-xxl",
    clip: Annotated[
        str, typer.Option(metavar="NAME", help="CLIP: OpenCLIP's name of it, or its folder.")
    ] = "ViT-L-14",
    gpus: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, help="GPUs to train on.", show_default="those of this machine"
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite SPEC.")] = False,
) -> None:
    """Write a spec for your own data.

    Looks at a sample of the data, prints what it finds, and writes a commented YAML file with
    stages sized to the pictures. Then show what it would do with `ediffi plan SPEC`.
    """
    import os

    from pipelines.data.inspect import lines
    from pipelines.planning import starter_spec as starter
    from pipelines.runs.meters import gpu_count

    writable(spec, "SPEC")
    if spec.exists() and not force:
        raise ValueError(f"{spec} exists; overwrite it with --force, or choose another name")
    encoders = {"t5": starter.check_encoder("--t5", t5)}
    encoders["clip"] = starter.check_encoder("--clip", clip)
    train, held, how = starter.look(
        data,
        validation or (),
        follow_links=follow_links,
        format=format,
        image=image,
        caption=caption,
        urls=urls or None,
    )
    written = starter.text(
        starter.name_for(spec),
        train,
        held,
        how,
        cpus=os.cpu_count() or 2,
        gpus=gpu_count() if gpus is None else gpus,
        **encoders,
    )
    spec.write_text(written, encoding="utf-8")
    for label, found in lines(train):
        echo(f"{label:<12}{found}")
    about = "" if held.exact else "about "
    echo(f"{'validation':<12}{how}: {about}{held.pairs:,} pairs")
    chosen = ", ".join(f"{name} ({side} pixels)" for name, side, _ in starter.stages(train))
    echo(f"{'stages':<12}{chosen}")
    echo(f"{spec} is written; next: `ediffi doctor {spec}`, then `ediffi plan {spec}`")


@app.command(
    epilog="\b\nExamples:\n  ediffi doctor\n  ediffi doctor my.yaml --storage s3://bucket/store"
)
def doctor(
    spec: Annotated[
        Path | None,
        typer.Argument(
            metavar="SPEC",
            help="Also check what this pipeline needs.",
            show_default="the machine alone",
        ),
    ] = None,
    storage: SomeStorage = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine, and what a run would connect to.

    Python, torch and its devices, memory, disks, Ray, MLflow, the store, and the encoders of
    SPEC. Exits with code 1 if there is a fault. Every check has a time-out.
    """
    from pipelines.executor.doctor import report

    found = []
    for check in report.examine(spec, storage, DEFAULT_STORAGE):
        found.append(check)
        if not as_json:
            echo(report.line(check))
    echo(report.as_json(found) if as_json else report.summary(found))
    if any(check.level == "fault" for check in found):
        raise SystemExit(1)
