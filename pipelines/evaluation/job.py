"""What an evaluation computes, and the chunks that it is divided into.

A chunk is ``batch`` pictures, whatever the number of workers: so that number changes no result. A
finished chunk is a small file, a part, and is not computed again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from ediffi_core.conditioning import Conditioning
from pipelines.evaluation import losses
from pipelines.evaluation.scoring import Scoring
from pipelines.metrics import Pictures
from pipelines.models.stages import Weights
from pipelines.store.artifacts import Store
from pipelines.store.reader import Reader

LOSS_DRAWS = 1024
"""Loss draws of one chunk, about."""

CACHE_BYTES = 64 * 2**20
"""Row groups that a worker keeps; chunks read them in order, so each is read about once."""


PARTS = "parts"
"""Folder of the parts, in that of an evaluation."""

RUN = 64
"""Consecutive rows that :class:`Spread` takes at a time."""


class Source(ABC):
    """Captions to draw pictures for, and the real pictures that belong to them."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of captions."""

    @abstractmethod
    def captions(self, rows: Sequence[int]) -> list[str]:
        """Captions of these rows."""

    @abstractmethod
    def read(self, rows: range) -> tuple[Conditioning, Pictures | None]:
        """Conditioning of the rows on text alone, and their real pictures, uint8 [N, R, R, 3].

        The pictures are None if the source has none.
        """

    def conditioning(self, rows: range) -> Conditioning:
        """The conditioning alone, where real pictures are not needed."""
        return self.read(rows)[0]


class Embedded(Source):
    """An embedded data set version, at the resolution of one stage."""

    def __init__(
        self, store: Store, folder: str, resolution: int, *, conditioning: bool = True
    ) -> None:
        """
        Args:
            folder: folder of the version in the store.
            conditioning: False for real pictures alone.

        Raises:
            ValueError: There is no such version, or it has no picture of this resolution.
        """
        self.reader = Reader(
            store, folder, resolution, cache_bytes=CACHE_BYTES, conditioning=conditioning
        )

    def __len__(self) -> int:
        return len(self.reader)

    def captions(self, rows: Sequence[int]) -> list[str]:
        return self.reader.captions(rows)

    def read(self, rows: Sequence[int]) -> tuple[Conditioning, Pictures | None]:
        x, cond = self.reader.rows(rows)
        return text_only(cond), as_bytes(x)


class Spread(Source):
    """Some rows of a data set version, in runs of :data:`RUN` that are spread evenly over it.

    Runs, as a row group is read whole: of 10⁹ rows, each thousandth would need all of them.
    """

    def __init__(self, source: Embedded, count: int) -> None:
        """
        Args:
            count: of more rows; else all are taken.
        """
        self.source, self.count = source, min(count, len(source))
        self.left_out = len(source) - self.count

    def __len__(self) -> int:
        return self.count

    def rows(self, rows: Sequence[int]) -> list[int]:
        """Rows of the source, which rise with those given."""
        gaps = max(1, (self.count - 1) // RUN)
        return [row + row // RUN * self.left_out // gaps for row in rows]

    def captions(self, rows: Sequence[int]) -> list[str]:
        return self.source.captions(self.rows(rows))

    def read(self, rows: Sequence[int]) -> tuple[Conditioning, Pictures | None]:
        return self.source.read(self.rows(rows))


def text_only(cond: Conditioning) -> Conditioning:
    """Conditioning without the picture's embedding, like a user's prompt."""
    absent = {k: torch.zeros_like(v) for k, v in cond.pooled.items() if k == "clip_image"}
    return replace(cond, pooled={**cond.pooled, **absent})


def as_bytes(x: torch.Tensor) -> Pictures:
    """Convert pictures [N, 3, R, R] in [-1, 1] to uint8 [N, R, R, 3]."""
    out: Pictures = ((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return out


@dataclass(frozen=True)
class Chunk:
    """A range of pictures to draw, or of loss draws to measure."""

    kind: Literal["pictures", "losses"]
    start: int
    stop: int

    @property
    def file(self) -> str:
        """Name of its part."""
        ending = "safetensors" if self.kind == "pictures" else "json"
        return f"{self.kind}-{self.start:08d}.{ending}"

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all chunks of an evaluation have in common; pickled to the workers."""

    store: Store

    folder: str
    """Folder in the store that the parts go to. Whatever changes a result must change it: a part
    that is there is taken as it is."""

    source: Callable[[], Source]
    """Opens the captions and real pictures; called once in each worker."""

    scoring: Scoring
    """How pictures are scored, and which features are kept."""

    count: int
    """Number of pictures: those of the first rows of the source."""

    batch: int
    """Pictures drawn at once, and loss draws per forward pass."""

    stages: Sequence[Mapping[str, Any]] = ()
    """The cascade's stages, as for :func:`~pipelines.models.stages.load_stages`. Without any,
    nothing is drawn: only the real pictures are looked at."""

    weights: Weights = None  # type: ignore[assignment]
    """``stage/slot`` → weights in the store."""

    seed: int = 0
    """Picture i depends on (seed, i) alone."""

    controls: bool = False
    """Also score captions shuffled, real pictures, an untrained network, and the pictures of the
    stage below enlarged."""

    losses: Mapping[str, Any] | None = None
    """How denoising losses are measured (:func:`pipelines.evaluation.losses.measure`); None to
    measure none. The source must then be :class:`Embedded`."""

    batches_per_part: int = 1
    """Batches whose results one part holds."""

    shown: int = 0
    """Number of drawn pictures to keep, from the first on."""

    device: str = "cpu"

    threads: int = 1
    """CPU threads of each worker."""

    def path(self, chunk: Chunk) -> str:
        """Path of a chunk's part in the store."""
        return f"{self.parts_folder}/{chunk.file}"

    @property
    def parts_folder(self) -> str:
        """Folder of the parts. Another batch has other chunks, and so another folder."""
        return f"{self.folder}/{PARTS}/{self.batch}"

    def pictures(self) -> list[Chunk]:
        """The chunks of pictures, in order."""
        return list(_chunks("pictures", self.count, self.batch * self.batches_per_part))

    def loss_chunks(self, pictures: int) -> list[Chunk]:
        """The chunks of losses, in order.

        Args:
            pictures: number of pictures of the source.
        """
        if self.losses is None:
            return []
        count = losses.number_of_draws(self.losses, pictures)
        return list(_chunks("losses", count, self.batch * max(1, LOSS_DRAWS // self.batch)))


def _chunks(kind: Literal["pictures", "losses"], count: int, size: int) -> Iterator[Chunk]:
    for start in range(0, count, size):
        yield Chunk(kind, start, min(start + size, count))
