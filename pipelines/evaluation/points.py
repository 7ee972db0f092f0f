"""The points of a quality–alignment curve: drawn and measured once, then read from the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from ediffi_core.conditioning import Conditioning
from ediffi_core.distances import Measured
from ediffi_core.measures import measure
from ediffi_core.metrics import MIN_KERNEL_PICTURES, Estimate, kernel_distance
from pipelines.dag.plan import digest
from pipelines.evaluation.curve import Point
from pipelines.evaluation.job import PARTS, Job, Source
from pipelines.evaluation.parts import DRAWN, REAL, MissingPart, Parts
from pipelines.evaluation.scoring import MAIN
from pipelines.evaluation.subject import Subject
from pipelines.evaluation.workers import Progress, Workers, run
from pipelines.metrics import Pictures
from pipelines.spec.evaluation import MeasureOptions

FOLDER = "curves"
"""Folder in the store for points, and for what they share."""

FORMAT = 1
"""Version of a point's results; a change of it measures all points again."""


@dataclass(frozen=True, kw_only=True)
class Drawn(Source):
    """A source without its real pictures, which are looked at once for all points."""

    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def captions(self, rows: Sequence[int]) -> list[str]:
        return self.source.captions(rows)

    def read(self, rows: range) -> tuple[Conditioning, Pictures | None]:
        return self.source.conditioning(rows), None


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """What all points of a curve have in common: captions, seed and measures."""

    job: Job
    """Without stages; its folder is that of the real pictures' features."""

    identity: Mapping[str, Any]
    """Everything that determines the measures besides the model and its settings."""

    workers: Workers
    on_features: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Name of features → the measures on them."""

    measure_options: MeasureOptions = field(default_factory=MeasureOptions)

    def fingerprint(self, subject: Subject) -> str:
        """Identity of a point's result."""
        return digest({**self.identity, **subject.identity, "format": FORMAT})

    def cached(self, subject: Subject, setting: Mapping[str, Any]) -> Point | None:
        """The point of a model with a setting, if it is measured already."""
        mark = self.fingerprint(subject)
        stored = self.job.store.read_json(f"{FOLDER}/points/{mark}/point.json")
        return Point.from_json({**stored, "setting": setting}) if stored else None

    def measure(self, subject: Subject, setting: Mapping[str, Any], progress: Progress) -> Point:
        """Draw and measure a model; what an interrupted call has drawn is used.

        Args:
            subject: The model with the setting in it.
            setting: The setting, as the point shows it.
        """
        mark = self.fingerprint(subject)
        folder = f"{FOLDER}/points/{mark}"
        job = replace(
            self.job,
            folder=folder,
            source=partial(_drawn, self.job.source),
            stages=subject.stages,
            weights=subject.weights,
        )
        real = run(self.job, self.workers)
        try:
            parts = run(job, self.workers, progress)
            point = Point(setting=setting, fingerprint=mark, measures=self.reduced(parts, real))
        except MissingPart:  # another process has measured the same, and removed the parts
            if (found := self.cached(subject, setting)) is None:
                raise
            point = found
        else:
            self.job.store.write_json(f"{folder}/point.json", point.to_json())
        # 30,000 pictures' features are large; an interrupted call may have had another batch.
        self.job.store.remove_folder(f"{folder}/{PARTS}")
        return point

    def reduced(self, parts: Parts, real: Parts) -> dict[str, Measured]:
        """All measures of a point.

        Args:
            parts: Of the drawn pictures.
            real: Of the real pictures of the same captions.
        """
        found = {}
        for name, values in parts.scores.get(DRAWN, {}).items():
            if len(applicable := values[~values.isnan()]):
                found[name] = of_pictures(applicable, "clip" if name == "clip_score" else "")
        made, true = parts.features(DRAWN, MAIN), real.features(REAL, MAIN)
        if made is not None and true is not None and len(made) >= MIN_KERNEL_PICTURES:
            found["kernel_distance"] = of_pictures(kernel_distance(made, true), MAIN)
        for name, measures in self.on_features.items():
            made, true = parts.features(DRAWN, name), real.features(REAL, name)
            assert made is not None and true is not None
            options = self.measure_options.settings()
            for measured, value in measure(measures, made, true, **options).items():
                found[f"{measured}/{name}"] = value
        return found


def _drawn(source: Callable[[], Source]) -> Source:
    return Drawn(source=source())


def of_pictures(values: Tensor, features: str) -> Measured:
    """The mean of one value per picture, with its interval. [N]"""
    one = Estimate.of(values)
    return Measured(
        value=one.mean, low=one.low, high=one.high, count=one.count, features=features, sha256=""
    )
