"""Verbs that draw with a trained ensemble."""

from __future__ import annotations

import re
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
            help="ensemble.json, a pipeline's name for its last run's, NAME@champion, "
            "NAME@candidate or NAME@VERSION; or models:/NAME@ALIAS as MLflow has it."
        ),
    ],
    prompts: Annotated[list[str], typer.Argument(help="One or several prompts.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG to write.")] = Path("out.png"),
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Guidance scale; 0 is none.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of the base.")] = None,
    solver: Annotated[
        str | None, typer.Option(help="Of the base: euler, heun, deis1 to deis3 or dpm++2m.")
    ] = None,
    style: Annotated[
        list[Path] | None, typer.Option(help="A picture whose style to take; several mix.")
    ] = None,
    paint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PHRASE=WHERE",
            help="Where words of the prompt shall be: a black and white picture, or left,top,"
            "right,bottom as parts of the sides.",
        ),
    ] = None,
    strength: Annotated[float, typer.Option(min=0, help="Of what is painted.")] = 0.4,
    stage: Annotated[
        str | None, typer.Option(help="Draw up to this stage of the cascade; else to the last.")
    ] = None,
    residency: Annotated[
        Literal["all", "current", "disk"],
        typer.Option(
            help="Experts on the device: all, the current one, or that and the rest on disk."
        ),
    ] = "all",
    seed: int = 0,
    n: Annotated[int, typer.Option("-n", min=1, help="Pictures a prompt.")] = 1,
    scale: Annotated[int, typer.Option(min=1, help="Enlarges the pictures in the PNG.")] = 4,
    storage: Storage = None,
) -> None:
    """Draws pictures for prompts with a trained ensemble."""
    import math

    writable(output)
    place = find_model(model, storage)
    from transformers.utils.logging import disable_progress_bar

    from pipelines.models import painting
    from pipelines.models.painting import picture
    from pipelines.models.text_to_image import TextToImage, grid

    disable_progress_bar()  # it would mix with an error's one line
    wanted = [p for p in prompts for _ in range(n)]
    pictures = TextToImage.load(place, residency).sample(
        wanted,
        guidance=guidance,
        steps=steps,
        solver=solver,
        seed=seed,
        style=[picture(p) for p in style or ()],
        paint=painting.parse(paint, wanted, strength) if paint else None,
        up_to=stage,
    )
    columns = n if n > 1 and len(prompts) > 1 else math.ceil(math.sqrt(len(wanted)))
    grid(pictures, columns=columns, scale=scale).save(output)
    typer.echo(f"{output}: {len(wanted)} picture{'s' * (len(wanted) > 1)}")


def find_model(model: str, storage: str | None) -> Path:
    """The ensemble.json behind a path, a pipeline's name or an address in a registry."""
    from pipelines.models import champions
    from pipelines.runs.execution import latest
    from pipelines.store.artifacts import Store

    if model.endswith(".json"):
        return Path(model)
    store = Store.at(storage or DEFAULT_STORAGE).check_access()
    if model.startswith("models:/"):
        return _registered(model, store)
    name, at, which = model.rpartition("@")
    if at:
        entry = champions.read(store, name).find(name, which)
        return store.local(f"{entry.folder}/ensemble.json")
    execution = latest(store, model)
    if execution is None:
        raise ValueError(
            f"{model!r} is no ensemble.json, no models:/ address and no pipeline in {store.root}"
        )
    record = execution.nodes.get(f"promote/{model}", {})
    if record.get("state") not in ("done", "reused"):
        raise ValueError(f"{model} has no finished ensemble yet; see `ediffi status`")
    return store.local(f"{record['folder']}/ensemble.json")


def _registered(model: str, store: Any) -> Path:
    """Of what MLflow keeps only the JSON is read: nothing of it is executed."""
    from pipelines.lineage import quiet_mlflow
    from pipelines.lineage.sync import address

    mlflow = quiet_mlflow()
    uri = address(store, re.split("[@/]", model.removeprefix("models:/"))[0])
    mlflow.set_tracking_uri(uri)
    try:
        return next(Path(mlflow.artifacts.download_artifacts(model)).rglob("ensemble.json"))
    except (mlflow.exceptions.MlflowException, StopIteration) as error:
        raise ValueError(f"{model} is not in the registry at {uri} ({error})") from error
