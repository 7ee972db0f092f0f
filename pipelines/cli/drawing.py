"""The verb that draws with a trained ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipelines.cli.app import DEFAULT_STORAGE, Storage, app, writable


@app.command(
    epilog='\b\nExamples:\n  ediffi sample emoji-scenes "a frog, on a pink background"\n'
    '  ediffi sample emoji-scenes "a frog and a rocket" --paint "a frog=0.5,0,1,1"\n'
    '  ediffi sample emoji-scenes@champion "a frog" --style picture.png --seed 3'
)
def sample(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="One of: a pipeline's name, for the ensemble of its last run; NAME@champion, "
            "NAME@candidate or NAME@VERSION; models:/NAME@ALIAS, for MLflow's registry; the path "
            "of an ensemble.json.",
        ),
    ],
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT", help="One or more prompts.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="PNG file to write.")
    ] = Path("out.png"),
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a sampling setting, such as guidance=5, steps=40, solver=heun, "
            "threshold=dynamic, or sr256.steps=20 for another stage than the base. Repeat the "
            "option for more. pipelines/docs/spec.md lists all keys of `sampling`.",
            show_default="the spec's",
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(metavar="SCALE", help="As --set guidance=SCALE.", show_default="the spec's"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="As --set steps=N.", show_default="the spec's")
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="As --set solver=NAME.", show_default="the spec's"),
    ] = None,
    style: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Take the style of this picture; repeat the option to mix several.",
            show_default="no style reference",
        ),
    ] = None,
    paint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PHRASE=WHERE",
            help="Place a phrase of the prompt (paint with words). WHERE is a black-and-white "
            "mask file, or a box left,top,right,bottom in fractions of the sides.",
            show_default="nothing painted",
        ),
    ] = None,
    strength: Annotated[
        float, typer.Option(metavar="WEIGHT", min=0, help="Strength of --paint.")
    ] = 0.4,
    stage: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Last stage of the cascade to run.", show_default="all stages"
        ),
    ] = None,
    residency: Annotated[
        Literal["all", "current", "disk"],
        typer.Option(
            metavar="WHERE",
            help="Keep all experts on the device (all); only the current one, the others in "
            "memory (current); or only the current one, the others on disk (disk).",
        ),
    ] = "all",
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the noise.")] = 0,
    n: Annotated[int, typer.Option("-n", metavar="N", min=1, help="Pictures per prompt.")] = 1,
    scale: Annotated[
        int, typer.Option(metavar="FACTOR", min=1, help="Enlarge the pictures in the PNG file.")
    ] = 4,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Draw pictures for prompts with a trained ensemble."""
    import math

    from pipelines.lineage.lookup import find_model

    writable(output)
    shorthands = {"guidance": guidance, "steps": steps, "solver": solver}
    changes = parse_settings(settings or ()) | {
        key: value for key, value in shorthands.items() if value is not None
    }
    place = find_model(model, storage)
    from transformers.utils.logging import disable_progress_bar

    from pipelines.models import painting
    from pipelines.models.painting import open_image
    from pipelines.models.text_to_image import TextToImage, grid

    disable_progress_bar()  # it would garble the one line of an error
    wanted = [p for p in prompts for _ in range(n)]
    pictures = TextToImage.load(place, residency).sample(
        wanted,
        sampling=changes,
        seed=seed,
        style=[open_image(p) for p in style or ()],
        paint=painting.parse_phrases(paint, wanted, strength) if paint else None,
        up_to=stage,
    )
    columns = n if n > 1 and len(prompts) > 1 else math.ceil(math.sqrt(len(wanted)))
    grid(pictures, columns=columns, scale=scale).save(output)
    typer.echo(f"{output}: {len(wanted)} picture{'s' * (len(wanted) > 1)}")


def parse_settings(given: Sequence[str]) -> dict[str, Any]:
    """Dotted keys → values, of ``KEY=VALUE`` arguments whose values are YAML.

    Raises:
        ValueError: An argument is malformed, or a key is given twice.
    """
    import yaml

    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"--set {text!r} sets nothing: write KEY=VALUE, as guidance=5")
        if key.strip() in found:
            raise ValueError(f"--set {key.strip()} is given twice; keep one")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(
                f"--set {text!r}: the value is not valid YAML; write it as in a spec"
            ) from None
    return found
