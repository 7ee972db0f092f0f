"""The verb that compares sampling settings of trained models."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipelines.cli import evaluate_options
from pipelines.cli.app import (
    DEFAULT_STORAGE,
    Storage,
    app,
    echo,
    tell_copy,
    writable,
    writable_folder,
)
from pipelines.formatting import clock

if TYPE_CHECKING:
    from pipelines.evaluation.comparison import Data, Place
    from pipelines.evaluation.curve import Curve, Point
    from pipelines.evaluation.points import Measuring
    from pipelines.evaluation.subject import Subject

CAPTIONS = 128
REPORT_EVERY_S = 10.0


@app.command(
    epilog="\b\nExamples:\n"
    "  ediffi evaluate emoji-scenes emoji-scenes/single --stage base --guidance 0:6:1 -o report\n"
    "  ediffi evaluate emoji-scenes --steps 5,10,20,40 --solver deis3,heun -o report\n"
    "  ediffi evaluate MODEL --protocol pipelines/specs/coco30k.yaml --plan --gpu H100 --price 2.5"
)
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="One or more models to compare, each as for `ediffi sample`; or NAME/single, "
            "NAME/root and the like, for models that a pipeline's last run evaluated beside its "
            "ensemble.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder of the report.")
    ] = Path("report"),
    guidance: Annotated[
        str | None,
        typer.Option(
            metavar="VALUES",
            help="Guidance scales to compare, as 0,1.5,4 or LOW:HIGH:STEP, such as 0:10:0.5.",
            show_default="the model's",
        ),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="VALUES",
            help="Numbers of sampling steps to compare, as 5,10,20.",
            show_default="the model's",
        ),
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Solvers to compare, as deis3,heun.",
            show_default="the model's",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change another sampling setting for all points, as in `ediffi sample`.",
            show_default="the model's",
        ),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Stage of the cascade whose pictures are measured.",
            show_default="the last",
        ),
    ] = None,
    data: Annotated[
        Literal["val", "train"],
        typer.Option(
            metavar="SPLIT",
            help="Captions and real pictures: the validation or training data of the first model.",
        ),
    ] = "val",
    protocol: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A benchmark's YAML file, such as pipelines/specs/coco30k.yaml, in place of "
            "--data.",
            show_default="no benchmark",
        ),
    ] = None,
    captions: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=3,
            help="Captions to draw a picture for.",
            show_default=f"{CAPTIONS}, or the benchmark's",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Seed of the noise.", show_default="0, or the benchmark's"),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="CLIP for the CLIP score, by OpenCLIP's name or a folder. It must not be the one "
            "that conditions the models.",
            show_default="the benchmark's, or no CLIP score",
        ),
    ] = None,
    clip_pretrained: Annotated[
        str | None,
        typer.Option(
            metavar="TAG",
            help="OpenCLIP's tag of the weights of --clip.",
            show_default="openai, or the benchmark's",
        ),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=SETTINGS]",
            help="Network whose features are compared, for FID and others: a name in the "
            "benchmark, or with settings as in a spec's `evaluate.features`, such as "
            "'inception={kind: inception, weights: FILE}'. Repeat the option for more.",
            show_default="the benchmark's, or none",
        ),
    ] = None,
    measures: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="What is measured on the features, such as fid,kid,cmmd.",
            show_default="fid, or the benchmark's",
        ),
    ] = None,
    alignment: Annotated[
        str | None,
        typer.Option(
            metavar="MEASURE",
            help="Measure of the horizontal axis.",
            show_default="clip_score, else the first of the spec's metrics",
        ),
    ] = None,
    distance: Annotated[
        str | None,
        typer.Option(
            metavar="MEASURE",
            help="Measure of the vertical axis.",
            show_default="the first of --features, else kernel_distance",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Pictures that are drawn together.",
            show_default="64, or the benchmark's",
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="Processes that draw, on Ray; 1 draws in this process."
        ),
    ] = 1,
    write_best: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write the first model with its best settings as an ensemble.json.",
            show_default="not written",
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only show what it would cost, and draw nothing.")
    ] = False,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="GPU to plan for, such as H100.",
            show_default="this machine's CPUs",
        ),
    ] = None,
    price: Annotated[
        float, typer.Option(metavar="USD", min=0, help="Price of one GPU for an hour, for --plan.")
    ] = 0.0,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Compare guidance, steps and solvers of trained models.

    The result is a quality–alignment curve for each model. All points are drawn for the same
    captions from the same noise, and kept in the store: the same command continues after an
    interruption, and further values draw only what is new. The report has curve.png, points.json
    and README.md; MLflow gets a copy.
    """
    import torch

    from pipelines.evaluation import comparison
    from pipelines.evaluation.curve import Curve
    from pipelines.executor.ray_cluster import lacking, start_ray
    from pipelines.lineage import curves as lineage
    from pipelines.lineage.lookup import find_subject, last_evaluation
    from pipelines.reports import curves
    from pipelines.spec.loading import load_protocol
    from pipelines.store.artifacts import Store

    writable_folder(output, "-o")
    if write_best:
        writable(write_best, "--write-best")
    known = load_protocol(protocol) if protocol else None
    swept, changes = evaluate_options.sweep_of(known, guidance, steps, solver, settings or ())
    given = {
        "captions": captions,
        "seed": seed,
        "batch": batch,
        "clip": clip,
        "clip_pretrained": clip_pretrained,
        "features": evaluate_options.features_of(known, features),
        "measures": evaluate_options.measures_of(measures),
    }
    options = evaluate_options.options_of(known, given, workers)
    evaluate_options.check_effect(
        options, given, known=known, split=data, plan=plan, gpu=gpu, price=price
    )
    side = known.resolution if known and not stage else None
    found = [find_subject(model, storage) for model in models]
    subjects = [
        s.up_to(resolution=side) if side else s.up_to(stage or s.last["name"]) for s in found
    ]
    comparison.check_comparable(subjects)
    if write_best:
        subjects[0].ensemble()  # refuses a model that is none before anything is drawn
    where = comparison.places(subjects, swept, changes)
    first = subjects[0]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if known:
        source = comparison.benchmark_data(subjects, known, options.captions, device)
        metrics = {}
    else:
        source = comparison.embedded_data(subjects, data, options.captions)
        last = last_evaluation(first.pipeline, first.last["name"], first.store)
        metrics = comparison.metrics_of(last)
    measuring = comparison.measuring(subjects, source, options, metrics, first.store, device)
    for text in evaluate_options.rank_deficient(options, source.count):
        echo(f"ediffi: warning: {text}", err=True)
    cached = [measuring.cached(place.subject, place.setting) for place in where]
    if plan:
        echo(_cost(where, cached, source.count, gpu, price))
        return
    if not all(cached):
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # it would garble the lines of progress
        Store.open(first.store.root)
        comparison.check_clip(options, subjects)
        if workers > 1:
            start_ray(workers * measuring.workers.cpus)
            _exit_on_sigterm()
            if lacks := lacking(measuring.workers.gpus, {}, cpus=measuring.workers.cpus):
                echo(f"the workers are waiting for a machine with {lacks} each")
    points = _measured(measuring, source, where, cached, (alignment, distance))
    lines = comparison.lines(subjects, swept, where, points)
    axes = comparison.axes_of(lines, alignment, distance)
    pixels = f"{first.last['resolution']}×{first.last['resolution']}"
    curve = Curve(
        title=f"{known.name if known else first.pipeline}: {source.count:,} captions, {pixels}",
        command=shlex.join(["ediffi", *sys.argv[1:]]),
        along=swept.along,
        alignment=axes[0],
        distance=axes[1],
        about={
            "data": known.name if known else f"{comparison.SPLITS[data]} data of {first.pipeline}",
            "captions": source.count,
            "pictures": pixels,
            "seed": options.seed,
            "scored by": ", ".join([*metrics, *filter(None, [options.clip]), *options.features]),
        },
        lines=lines,
    )
    curves.write(curve, output)
    echo(f"{output}/README.md, curve.png and points.json: {len(where)} points")
    pipeline = first.pipeline
    tell_copy(lambda: lineage.record(curve, output, first.store, pipeline), pipeline)
    if write_best:
        _write_best(write_best, curve, where, first)


def _exit_on_sigterm() -> None:
    """End as without Ray, whose handler writes a stack trace of C++ and aborts."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def _cost(
    where: Sequence[Place],
    points: Sequence[Point | None],
    count: int,
    gpu: str | None,
    price: float,
) -> str:
    """What the points that are still to be drawn cost."""
    import os

    from pipelines.planning import sweep_cost
    from pipelines.spec.cluster import Group
    from pipelines.spec.gpus import known_gpu

    group = Group(gpu=known_gpu(gpu), count=1, price=price) if gpu else None
    todo = [
        sweep_cost.cost_of(p.subject.store, p.subject.stages, p.subject.weights, count)
        for p, point in zip(where, points, strict=True)
        if not point
    ]
    done = len(points) - len(todo)
    return sweep_cost.text(todo, done, group, cpus=os.cpu_count() or 1)


def _measured(
    measuring: Measuring,
    source: Data,
    where: Sequence[Place],
    points: Sequence[Point | None],
    axes: Sequence[str | None],
) -> list[Point]:
    """All points; those that are not in the store yet are drawn, with a line of progress each."""
    from pipelines.evaluation.sweep import label
    from pipelines.evaluation.workers import WorkersDied

    log = _Log()
    if not all(points):
        source.prepare(lambda done: log.progress(f"{done:,} of {source.count:,} captions encoded"))
    found: list[Point] = []
    for place, point in zip(where, points, strict=True):
        name = ", ".join(filter(None, [place.subject.name, label(place.setting)]))

        def progress(done: int, of: int, name: str = name) -> None:
            log.progress(f"{name}: {done:,} of {of:,} pictures")

        try:
            new = point or measuring.measure(place.subject, place.setting, progress)
        except WorkersDied as error:
            raise ValueError(f"{name}: {error}; the same command continues") from error
        new.check(*axes)
        shown = ", ".join(f"{key} {one.value:.3f}" for key, one in new.measures.items())
        log(f"{name}: {shown}{' (from the store)' if point else ''}")
        found.append(new)
    return found


class _Log:
    """Prints lines after the time since the start; those of progress every few seconds at most."""

    def __init__(self) -> None:
        self.started = self.printed = time.monotonic()

    def __call__(self, text: str) -> None:
        self.printed = time.monotonic()
        echo(f"[{clock(self.printed - self.started):>5}] {text}")

    def progress(self, text: str) -> None:
        if time.monotonic() - self.printed >= REPORT_EVERY_S:
            self(text)


def _write_best(file: Path, curve: Curve, where: Sequence[Place], first: Subject) -> None:
    """Write the first model with the best settings of its lines."""
    import json

    from pipelines.evaluation.curve import best
    from pipelines.evaluation.sweep import label

    mine = [p for line in curve.lines if line.model == first.name for p in line.points]
    one = best(mine, curve.alignment, curve.distance)
    [place] = [
        p for p in where if p.subject.name == first.name and dict(p.setting) == dict(one.setting)
    ]
    file.write_text(json.dumps(place.subject.ensemble(), indent=1, sort_keys=True))
    echo(f"{file}: {first.name} with {label(one.setting)}; draw with `ediffi sample {file}`")
