"""Compare models and their sampling settings: what is measured, on what, and every point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ediffi_core.encoders import CLIP
from pipelines.dag.plan import digest
from pipelines.dag.sources import identify_encoder, identify_features
from pipelines.data.chosen_captions import choose
from pipelines.evaluation.benchmark import Benchmark
from pipelines.evaluation.curve import Line, Point, lower_is_better
from pipelines.evaluation.job import Embedded, Job, Source
from pipelines.evaluation.points import FOLDER, Measuring
from pipelines.evaluation.scoring import Scoring
from pipelines.evaluation.subject import Subject
from pipelines.evaluation.sweep import Sweep
from pipelines.evaluation.workers import Workers
from pipelines.features.opening import open_extractor
from pipelines.metrics import metric
from pipelines.models.encoders import encoders_of, load_prompt_encoder
from pipelines.spec.evaluation import FeatureNetwork, Measure, MeasureOptions
from pipelines.spec.protocol import Protocol
from pipelines.store.artifacts import Store
from pipelines.store.dataset import Version
from pipelines.store.reader import Reader

CAPTIONS = 128
"""Captions by default."""

SPLITS = {"val": "validation", "train": "train"}
"""Name of a split on the command line → in a spec."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user chose, apart from models and data."""

    captions: int | None = None
    """Number of captions; None for the benchmark's, or up to :data:`CAPTIONS`."""

    seed: int = 0
    batch: int = 64
    clip: str | None = None
    clip_pretrained: str = "openai"
    features: Mapping[str, FeatureNetwork] = field(default_factory=dict)
    measures: Sequence[Measure] = ("fid",)
    measure_options: MeasureOptions = field(default_factory=MeasureOptions)
    workers: int = 1


@dataclass(frozen=True)
class Data:
    """Captions and real pictures, and whether they were prepared for the models."""

    source: Callable[[], Source]
    identity: Mapping[str, Any]
    count: int
    prepare: Callable[[Callable[[int], None]], None] = lambda report: None
    """Encodes captions that are not encoded yet, and reports how many are done."""


def check_comparable(subjects: Sequence[Subject]) -> None:
    """Check that models can be drawn with the same captions and compared.

    Raises:
        ValueError: They are in different stores, or draw pictures of different sizes.
    """
    first = subjects[0]
    names = [subject.name for subject in subjects]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice} is named twice; name each model once")
    for other in subjects[1:]:
        if other.store.root != first.store.root:
            raise ValueError(
                f"{first.name} is in {first.store.root}, and {other.name} in {other.store.root}; "
                "compare models of one store"
            )
        sides = [s.last["resolution"] for s in (first, other)]
        if sides[0] != sides[1]:
            raise ValueError(
                f"{first.name} draws {sides[0]}×{sides[0]} pictures, {other.name} "
                f"{sides[1]}×{sides[1]}; name a stage that both have with --stage"
            )


def embedded_data(subjects: Sequence[Subject], split: str, captions: int | None) -> Data:
    """Captions and pictures of the first model's embedded data.

    Args:
        split: A key of :data:`SPLITS`.
        captions: Number of captions; None for up to :data:`CAPTIONS`.

    Raises:
        ValueError: There are fewer captions, or the models were trained with other encoders.
    """
    named = SPLITS[split]
    folder = next((s.data[named] for s in subjects if named in s.data), None)
    if folder is None:
        raise ValueError(
            f"{subjects[0].name} does not say which {named} data it had; name its ensemble first"
        )
    store, side = subjects[0].store, subjects[0].last["resolution"]
    version = Version.open(store, folder)
    for subject in subjects:
        try:
            version.check_encoders(subject.trained_with)
        except ValueError as error:
            raise ValueError(f"{subject.name} cannot be drawn with this data: {error}") from None
    there = len(Reader(store, version, side))
    count = min(CAPTIONS, there) if captions is None else captions
    if count > there:
        raise ValueError(
            f"the {named} data has {there:,} captions with {side}×{side} pictures, {count:,} are "
            "asked for; write a smaller --captions"
        )
    identity = {"data": folder, "resolution": side}
    return Data(partial(Embedded, store, folder, side), identity, count)


def benchmark_data(
    subjects: Sequence[Subject], protocol: Protocol, captions: int | None, device: str
) -> Data:
    """Captions and pictures of a benchmark, encoded by the models' own encoders.

    Raises:
        ValueError: The benchmark's files are missing, too few or of another format; it is of
            another resolution than the stage; or the models were trained with different encoders.
    """
    first = subjects[0]
    side = first.last["resolution"]
    if side != protocol.resolution:
        raise ValueError(
            f"{protocol.name} is of pictures of {protocol.resolution}×{protocol.resolution}, stage "
            f"{first.last['name']} draws {side}×{side}; leave out --stage, or write `resolution: "
            f"{side}` into a copy of the benchmark"
        )
    for other in subjects[1:]:
        if other.trained_with != first.trained_with:
            raise ValueError(
                f"{first.name} and {other.name} were trained with different encoders; evaluate "
                "them one at a time"
            )
    manifest = next((s.manifest for s in subjects if s.manifest is not None), None)
    if manifest is None:
        raise ValueError(
            f"{first.name} does not say where its encoders are; name its pipeline's ensemble too"
        )
    wanted = protocol.captions
    chosen = choose(
        wanted.annotations,
        wanted.images,
        count=wanted.count if captions is None else captions,
        seed=wanted.seed,
    )
    encoded_as = {"captions": chosen.texts_identity, "encoders": first.trained_with}
    opened = partial(
        Benchmark,
        chosen=chosen,
        resolution=protocol.resolution,
        store=first.store,
        folder=f"{FOLDER}/captions/{digest(encoded_as)}",
    )
    places = encoders_of(first.store, manifest)
    load_encoder = partial(load_prompt_encoder, places, first.trained_with, device)
    identity = {
        **encoded_as,
        "resolution": protocol.resolution,
        "pictures": chosen.pictures_identity,
    }
    return Data(opened, identity, len(chosen), lambda report: opened().encode(load_encoder, report))


def measuring(
    subjects: Sequence[Subject],
    data: Data,
    options: Options,
    metrics: Mapping[str, Mapping[str, Any]],
    store: Store,
    device: str,
) -> Measuring:
    """What all points have in common.

    Args:
        metrics: Metric → its options, version, and folder of what it has learned.
        store: The store that points are kept in.

    Raises:
        ValueError: There is nothing to measure with.
    """
    if options.clip is None and not metrics:
        raise ValueError(
            "nothing measures whether pictures show their captions; name a CLIP with --clip that "
            "does not condition the models"
        )
    measures: dict[str, Any] = {"metrics": {n: dict(m) for n, m in metrics.items()}}
    clip = None
    if options.clip is not None:
        tag = options.clip_pretrained
        measures["clip"] = {"model": identify_encoder(options.clip), "pretrained": tag}
        clip = partial(CLIP, options.clip, pretrained=tag)
    networks = {}
    for name, given in options.features.items():
        identity = identify_features(name, given)
        measures.setdefault("features", {})[name] = identity
        if given.weights:  # workers may run in another folder
            given = given.model_copy(
                update={"weights": str(Path(given.weights).expanduser().absolute())}
            )
        networks[name] = partial(open_extractor, name, given)
    real = {**data.identity, **measures, "count": data.count}
    threads = max(1, torch.get_num_threads() // options.workers)
    job = Job(
        store=store,
        folder=f"{FOLDER}/real/{digest(real)}",
        source=data.source,
        scoring=Scoring(metrics=metrics, clip=clip, features=networks),
        count=data.count,
        batch=options.batch,
        weights={},
        seed=options.seed,
        device=device,
        threads=threads,
    )
    workers = Workers(count=options.workers, cpus=threads, gpus=1 if device == "cuda" else 0)
    on_features = _on_features(options, data.count)
    identity = {**real, "seed": options.seed}
    if on_features:
        how = options.measure_options.settings()
        identity["measures"] = {"on": on_features, "options": how}
    return Measuring(
        job=job,
        identity=identity,
        workers=workers,
        on_features=on_features,
        measure_options=options.measure_options,
    )


def _on_features(options: Options, count: int) -> dict[str, list[Measure]]:
    """Name of features → the measures on them; CMMD is of CLIP's features alone.

    Raises:
        ValueError: A measure needs more pictures.
    """
    for measure in options.measures if options.features else ():
        if (least := options.measure_options.fewest(measure)) > count:
            raise ValueError(
                f"{measure} needs at least {least:,} pictures, and there are {count:,} captions; "
                "raise --captions, or leave the measure out"
            )
    return {
        name: [m for m in options.measures if m != "cmmd" or given.kind == "clip"]
        for name, given in options.features.items()
    }


def check_clip(options: Options, subjects: Sequence[Subject]) -> None:
    """Check that the CLIP that scores does not condition a model.

    Raises:
        ValueError: It does, or it cannot be loaded.
    """
    if options.clip is None:
        return
    try:
        clip = CLIP(options.clip, pretrained=options.clip_pretrained)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"CLIP {options.clip!r} cannot be loaded ({' '.join(str(error).split())[:300]}); give "
            "--clip a name that can be downloaded, or a folder"
        ) from error
    for subject in subjects:
        if subject.trained_with.get("clip", {}).get("sha256") == clip.sha256:
            raise ValueError(
                f"CLIP {options.clip} conditions {subject.name}, whose pictures it would favour; "
                "name another one with --clip"
            )


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a point is in a comparison."""

    line: int
    subject: Subject
    """The model, with the point's settings in it."""

    setting: Mapping[str, Any]


def metrics_of(evaluation: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The metrics that a pipeline's evaluation used, with what they have learned.

    Args:
        evaluation: Manifest of an evaluate node.

    Raises:
        ValueError: A metric is not installed, or in another version.
    """
    if evaluation is None:
        return {}
    found = {}
    for name, how in evaluation["settings"]["metrics"].items():
        if (now := metric(name, how["options"]).version) != how["version"]:
            raise ValueError(
                f"metric {name} is of version {now} here, and of {how['version']} in the "
                "pipeline's last run; run the pipeline again first"
            )
        learned = evaluation["inputs"][f"metric/{name}"]
        folder = f"nodes/{learned['node']}-{learned['fingerprint']}"
        found[name] = {**how, "folder": folder}
    return found


def places(subjects: Sequence[Subject], swept: Sweep, changes: Mapping[str, Any]) -> list[Place]:
    """All points of a comparison: for each model a line per combination of the further axes.

    Args:
        changes: Sampling settings that are changed for all points.

    Raises:
        ValueError: A setting is unknown or invalid.
    """
    found, line = [], 0
    for subject in subjects:
        for fixed in swept.lines:
            for setting in swept.points(fixed):
                changed = subject.changed({**changes, **setting})
                found.append(Place(line=line, subject=changed, setting=setting))
            line += 1
    return found


def lines(
    subjects: Sequence[Subject], swept: Sweep, where: Sequence[Place], points: Sequence[Point]
) -> list[Line]:
    """The lines of a comparison.

    Args:
        where: from :func:`places`.
        points: what was measured at each.
    """
    heads = [(subject.name, fixed) for subject in subjects for fixed in swept.lines]
    return [
        Line(
            model=name,
            fixed=fixed,
            points=[p for place, p in zip(where, points, strict=True) if place.line == number],
        )
        for number, (name, fixed) in enumerate(heads)
    ]


def axes_of(made: Sequence[Line], alignment: str | None, distance: str | None) -> tuple[str, str]:
    """The measures of the two axes: those that are named, else what papers plot.

    Raises:
        ValueError: A point lacks one.
    """
    points = [point for line in made for point in line.points]
    names = list(points[0].measures)
    near = [name for name in names if lower_is_better(name)]
    good = [name for name in names if not lower_is_better(name)]
    by_features = [name for name in near if "/" in name]
    y = distance or next(iter([*by_features, *near]), None)
    x = alignment or ("clip_score" if "clip_score" in good else next(iter(good), None))
    if x is None or y is None:
        raise ValueError(
            f"a curve needs an alignment and a distance, and only {', '.join(names)} is measured; "
            "name a CLIP with --clip"
        )
    for point in points:
        point.check(x, y)
    return x, y
