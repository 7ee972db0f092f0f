"""The verb that draws with a trained ensemble."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipelines.cli.app import DEFAULT_STORAGE, MODEL_NAMES, app, confirm, echo, storage_option
from pipelines.cli.help import Sectioned
from pipelines.cli.sample_output import (
    File,
    Folder,
    Job,
    check_file,
    check_inputs,
    check_size,
    compare,
    is_folder,
    note,
    sheet_for,
)
from pipelines.cli.sample_request import Options, make_request

if TYPE_CHECKING:
    from pipelines.models.metadata import Metadata, ModelId

WHAT, HOW, WHERE = "What to draw", "How to draw it", "Where to put it"


@app.command(
    cls=Sectioned,
    epilog='\b\nExamples:\n  ediffi sample emoji-scenes "a frog, on a pink background" -n 4\n'
    "  ediffi sample emoji-scenes --prompts prompts.txt -o pictures/\n"
    '  ediffi sample emoji-scenes "a frog and a rocket" --paint "a frog=0.5,0,1,1"\n'
    '  ediffi sample emoji-scenes@champion "a frog" --style picture.png --seed 3\n'
    "  ediffi sample --like out.png --set steps=40 -o finer.png",
)
def sample(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help=MODEL_NAMES, show_default="the model of --like"),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT", help="One or more prompts.", show_default="those of --prompts"
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="Text file with a prompt a line; blank lines and lines that start with # are "
            "skipped. - reads standard input.",
            show_default="no file",
            rich_help_panel=WHAT,
        ),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n",
            metavar="N",
            min=1,
            help="Pictures per prompt.",
            show_default="1, or what --seeds are enough for",
            rich_help_panel=WHAT,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Seed of the noise. Picture i depends on the seed and i.",
            show_default="0",
            rich_help_panel=WHAT,
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="A seed for each picture: 3,7,11 or 0:8, which is 0 to 7. With -n N, N seeds that "
            "every prompt is drawn with.",
            show_default="--seed",
            rich_help_panel=WHAT,
        ),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            metavar="PICTURE",
            help="Draw a PNG file of this command again: its model, prompts, seeds and settings, "
            "but for the options given beside it.",
            show_default="nothing to repeat",
            rich_help_panel=WHAT,
        ),
    ] = None,
    negative: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Guide away from this prompt.",
            show_default="none",
            rich_help_panel=WHAT,
        ),
    ] = None,
    then: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Switch to this prompt midway, at --switch or --switch-sigma.",
            show_default="none",
            rich_help_panel=WHAT,
        ),
    ] = None,
    switch: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION",
            help="Share of the base's steps after which --then takes over, as 0.3.",
            show_default="--switch-sigma",
            rich_help_panel=WHAT,
        ),
    ] = None,
    switch_sigma: Annotated[
        float | None,
        typer.Option(
            metavar="SIGMA",
            help="Noise level at which --then takes over.",
            show_default="--switch",
            rich_help_panel=WHAT,
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Start from this picture plus noise (image-to-image); with --mask, keep a part "
            "of it (inpainting).",
            show_default="pure noise",
            rich_help_panel=WHAT,
        ),
    ] = None,
    sigma: Annotated[
        float | None,
        typer.Option(
            metavar="SIGMA",
            help="Noise level at which --image starts: the higher, the less of it is left.",
            show_default="an eighth of the base's pixels; all noise with --mask",
            rich_help_panel=WHAT,
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw where this picture is bright, and keep --image where it is dark.",
            show_default="nothing kept",
            rich_help_panel=WHAT,
        ),
    ] = None,
    variation: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw variations of this picture, by CLIP's embedding of it; prompts may be left "
            "out.",
            show_default="none",
            rich_help_panel=WHAT,
        ),
    ] = None,
    style: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[=WEIGHT]",
            help="Take the style of this picture; repeat the option to mix several.",
            show_default="no style reference",
            rich_help_panel=WHAT,
        ),
    ] = None,
    paint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PHRASE=WHERE",
            help="Place a phrase of the prompt (paint with words). WHERE is a black-and-white "
            "mask file, or a box left,top,right,bottom in fractions of the sides.",
            show_default="nothing painted",
            rich_help_panel=WHAT,
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            metavar="WEIGHT",
            min=0,
            help="Strength of --paint.",
            show_default="0.4",
            rich_help_panel=WHAT,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a sampling setting, such as guidance=5, steps=40, solver=heun, "
            "threshold=dynamic, or sr256.steps=20 for another stage than the base. Repeat the "
            "option for more. pipelines/docs/spec.md lists all keys of `sampling`.",
            show_default="the spec's",
            rich_help_panel=HOW,
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            metavar="SCALE",
            help="As --set guidance=SCALE.",
            show_default="the spec's",
            rich_help_panel=HOW,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="As --set steps=N.", show_default="the spec's", rich_help_panel=HOW
        ),
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="As --set solver=NAME.",
            show_default="the spec's",
            rich_help_panel=HOW,
        ),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Last stage of the cascade to run.",
            show_default="all stages",
            rich_help_panel=HOW,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Pictures drawn at once: fewer need less memory.",
            show_default="16",
            rich_help_panel=HOW,
        ),
    ] = None,
    residency: Annotated[
        Literal["all", "current", "disk"],
        typer.Option(
            metavar="WHERE",
            help="Keep all experts on the device (all); only the current one, the others in "
            "memory (current); or only the current one, the others on disk (disk).",
            rich_help_panel=HOW,
        ),
    ] = "all",
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="PATH",
            help="PNG file to write, a contact sheet if there are several pictures; or a folder, "
            "as pictures/, for a file each.",
            rich_help_panel=WHERE,
        ),
    ] = "out.png",
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Overwrite a file without asking, files in a folder, and the pictures of --like, "
            "--image and so on. Only a terminal is asked, never a script.",
            rich_help_panel=WHERE,
        ),
    ] = False,
    scale: Annotated[
        int | None,
        typer.Option(
            metavar="FACTOR",
            min=1,
            help="Enlarge the pictures in the file.",
            show_default="to about 256 pixels; 1 in a folder",
            rich_help_panel=WHERE,
        ),
    ] = None,
    captions: Annotated[
        bool | None,
        typer.Option(
            "--captions/--no-captions",
            help="Write prompts and seeds below the pictures of a contact sheet, or nothing.",
            show_default="captions",
            rich_help_panel=WHERE,
        ),
    ] = None,
    metadata: Annotated[
        bool,
        typer.Option(
            "--metadata/--no-metadata",
            help="Store model, prompts, seeds and settings in PNG files, for --like, or nothing.",
            rich_help_panel=WHERE,
        ),
    ] = True,
    storage: Annotated[str, storage_option(panel=WHERE)] = DEFAULT_STORAGE,
) -> None:
    """Draw pictures for prompts with a trained ensemble."""
    shorthands = {"guidance": guidance, "steps": steps, "solver": solver}
    given = {key: value for key, value in shorthands.items() if value is not None}
    changes = parse_settings(settings or ())
    if twice := [key for key in given if key in changes]:
        raise ValueError(f"--{twice[0]} and --set {twice[0]} are both given; keep one")
    options = Options(
        prompts=prompts or (),
        file=file,
        n=n,
        seed=seed,
        seeds=seeds,
        negative=negative,
        image=image,
        sigma=sigma,
        mask=mask,
        variation=variation,
        style=style or (),
        paint=paint or (),
        strength=strength,
        then=then,
        switch=switch,
        switch_sigma=switch_sigma,
        settings=changes | given,
        stage=stage,
    )
    from pipelines.models import metadata as png
    from pipelines.models.sheet import default_scale

    target = Path(output)
    if not is_folder(output):
        check_file(target)
        if like and not force:
            check_inputs(target, {"--like": [like]})
    seen = png.read(like) if like else None
    place, drawn_by, stages = _find(model, storage, seen)
    request = make_request(options, stages, batch, seen)
    if not is_folder(output) and not force:
        check_inputs(target, request.files(like))
        if target.exists():
            confirm(f"{target} exists; overwrite it?", yes=False)
    repeats = seen is not None and options.is_empty
    shows = seen.shows if seen and repeats else range(len(request.pictures))
    job = Job(model=drawn_by, request=request, shows=shows, has_metadata=metadata)
    destination: Folder | File
    if is_folder(output):
        destination = Folder(target, job, scale or 1, force=force)
    else:
        last = next(reversed(request.sampling))
        side = next(s["resolution"] for s in stages if s["name"] == last)
        size = scale or (seen.scale if seen and repeats else default_scale(side))
        sheet = sheet_for(job, captions, seen.sheet if seen and repeats else None)
        destination = File(target, job, size, sheet)
        check_size(len(job.shown), side * size)

    from transformers.utils.logging import disable_progress_bar

    from pipelines.models import painting
    from pipelines.models.render import open_inputs, render
    from pipelines.models.text_to_image import TextToImage

    disable_progress_bar()  # it would garble the one line of an error
    inputs = open_inputs(request, like)
    loaded = TextToImage.load(place, residency, storage)
    is_shown = sys.stderr.isatty() and len(list(request.batches())) > 1
    with typer.progressbar(
        length=len(shows), label="drawing", file=sys.stderr, show_pos=True, hidden=not is_shown
    ) as progress:
        for rows, pictures in render(loaded, request, inputs, {*shows}):
            destination.add(rows, pictures)
            progress.update(len(rows))
    is_the_same = seen and repeats and seen.model.manifest == drawn_by.manifest
    before = painting.open_image(like) if like and is_the_same else None
    destination.finish()
    if isinstance(destination, File) and like and before:
        compare(destination.image, before, like)
    count = len(job.shown)
    echo(f"{target}{'/' * is_folder(output)}: {count} picture{'s' * (count > 1)}")


def _find(
    model: str | None, storage: str, seen: Metadata | None
) -> tuple[Path, ModelId, list[dict[str, Any]]]:
    """The path of the ensemble to draw with, what it is, and the stages of its manifest."""
    from pipelines.lineage.lookup import find_drawn_by, find_model, identify
    from pipelines.models.manifest import read_manifest

    if model is not None:
        place = find_model(model, storage)
    elif seen is not None:
        place = find_drawn_by(seen.model, storage)
    else:
        raise ValueError("no model is given; write one before the prompts, or --like PICTURE")
    stages, found = read_manifest(place, storage)["stages"], identify(place, storage)
    if seen and seen.model.manifest != found.manifest:
        note(f"the picture of --like was drawn by {seen.model}, not by {found}")
    return place, found, stages


def parse_settings(given: Sequence[str]) -> dict[str, Any]:
    """Dotted keys → values, of ``KEY=VALUE`` arguments whose values are YAML.

    Raises:
        ValueError: An argument is malformed, or a key is given twice.
    """
    from pipelines.spec.loading import parse_value

    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"--set {text!r} sets nothing: write KEY=VALUE, as guidance=5")
        if key.strip() in found:
            raise ValueError(f"--set {key.strip()} is given twice; keep one")
        try:
            found[key.strip()] = parse_value(value)
        except ValueError as error:
            raise ValueError(f"--set {text!r}: {error}") from None
    return found
