"""The parts of an evaluation in the store: written by workers, read one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ediffi_core.features import Features
from pipelines.evaluation import losses
from pipelines.evaluation.job import Chunk, Job
from pipelines.evaluation.losses import Losses
from pipelines.evaluation.scores import Scores
from pipelines.evaluation.scoring import MAIN
from pipelines.metrics import Pictures
from pipelines.store.artifacts import Store

DRAWN, REAL, SHUFFLED, UNTRAINED, ENLARGED = "drawn", "real", "shuffled", "untrained", "enlarged"
"""What a score or feature is of: pictures of the model, real ones, those of the model with other
captions, those of an untrained network, and those of the stage below, enlarged."""

SHOWN = "shown"

NETWORKS = "networks.json"
"""File beside the parts: name of features → sha256 of their network's weights."""


class MissingPart(ValueError):
    """A part is not in the store."""


def key(of: str, what: str, name: str) -> str:
    """Key of a tensor in a part.

    Args:
        of: such as :data:`DRAWN`.
        what: ``scores`` or ``features``.
    """
    return f"{of}/{what}/{name}"


def write(job: Job, chunk: Chunk, found: Mapping[str, Tensor]) -> None:
    """Write the part of a chunk of pictures, atomically."""
    # Safetensors refuses tensors that share memory, such as two scores that a metric took as one.
    plain = {
        name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in found.items()
    }
    job.store.write(job.path(chunk), save(plain))


def read(store: Store, path: str) -> dict[str, Tensor]:
    """The tensors of a part; MissingPart if there is none, ValueError if it is damaged."""
    data = store.read(path)
    if data is None:
        raise MissingPart(f"{store.full(path)} is missing; run the same again")
    return tensors(data, store.full(path))


def tensors(data: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a file; ValueError if it is damaged.

    Args:
        where: the file's path, for the message.
    """
    try:
        return load(data)
    except SafetensorError as error:
        raise ValueError(f"{where} is damaged ({error}); remove it and run again") from error


def stored_features(
    store: Store, paths: Sequence[str], of: str, name: str, *, count: int
) -> Features:
    """Features in parts, which are read one after another.

    Args:
        paths: of the parts in the store, in order.
        of: what the pictures are, such as :data:`DRAWN`.
        name: name of the features.
        count: number of pictures.

    Raises:
        MissingPart: It is not known which network made them.
    """

    def blocks() -> Iterator[Tensor]:
        for path in paths:
            yield read(store, path)[key(of, "features", name)]

    folder = paths[0].rpartition("/")[0]
    networks = store.read_json(f"{folder}/{NETWORKS}")
    if networks is None:
        if name != MAIN:
            raise MissingPart(f"{store.full(folder)}/{NETWORKS} is missing; remove its folder")
        networks = {}
    return Features(blocks, count=count, name=name, sha256=networks.get(name, ""))


@dataclass(frozen=True)
class Parts:
    """The parts of a job, all of which are there."""

    job: Job

    def each(self) -> Iterator[dict[str, Tensor]]:
        """The tensors of each part of pictures, in order; ValueError if one is missing."""
        for chunk in self.job.pictures():
            yield self._read(chunk)

    def _read(self, chunk: Chunk) -> dict[str, Tensor]:
        return read(self.job.store, self.job.path(chunk))

    @cached_property
    def scores(self) -> Mapping[str, Scores]:
        """All scores: what they are of → score → one value per picture.

        Only the untrained network has fewer values than there are pictures.
        """
        found: dict[str, list[Scores]] = {}
        for tensors in self.each():
            mine: dict[str, Scores] = {}
            for name, values in tensors.items():
                of, what, score = name.split("/", 2)
                if what == "scores":
                    mine.setdefault(of, {})[score] = values
            for of, scores in mine.items():
                found.setdefault(of, []).append(scores)
        return {of: _joined(parts) for of, parts in found.items()}

    @cached_property
    def extractors(self) -> Mapping[str, Sequence[str]]:
        """What features there are: what they are of → names."""
        found: dict[str, list[str]] = {}
        for name in self._read(self.job.pictures()[0]):
            of, what, extractor = name.split("/", 2)
            if what == "features":
                found.setdefault(of, []).append(extractor)
        return found

    def features(self, of: str, name: str) -> Features | None:
        """Features of a set of pictures; None if the parts have none of that name."""
        if name not in self.extractors.get(of, ()):
            return None

        paths = [self.job.path(chunk) for chunk in self.job.pictures()]
        return stored_features(self.job.store, paths, of, name, count=self.job.count)

    def shown(self) -> Pictures:
        """The first drawn pictures, uint8 [n, R, R, 3]."""
        kept = []
        for chunk in self.job.pictures():
            if chunk.start >= self.job.shown:
                break
            kept.append(self._read(chunk)[key(DRAWN, SHOWN, "pictures")])
        found: Pictures = torch.cat(kept).numpy()
        return found

    def losses(self, pictures: int) -> Losses:
        """The denoising losses; arguments as of :meth:`Job.loss_chunks`."""
        job = self.job
        return losses.merged(
            [
                losses.read(job.store, job.parts_folder, chunk.file)
                for chunk in job.loss_chunks(pictures)
            ]
        )


def _joined(parts: Sequence[Scores]) -> Scores:
    """Scores of several parts; NaN where a part lacks one, as its captions do not ask for it."""
    names = sorted({name for part in parts for name in part})
    nothing = [torch.full_like(next(iter(part.values())), torch.nan) for part in parts]
    return {
        name: torch.cat([part.get(name, nan) for part, nan in zip(parts, nothing, strict=True)])
        for name in names
    }
