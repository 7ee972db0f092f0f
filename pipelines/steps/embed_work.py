"""An embedding job, and one shard as it passes through the job's stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pipelines.data.formats.shard import SourceShard
from pipelines.data.row_reuse import ReuseIndex
from pipelines.data.rows import Reason, RejectedRow
from pipelines.data.shard_pool import is_complete, shard_path
from pipelines.spec.data import Filters, Source
from pipelines.steps.embed_batch import BatchSetting
from pipelines.store.artifacts import Store
from pipelines.store.remote import StorageError


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all shards of an embedding job have in common; sent to every actor."""

    store: Store
    pool: str
    """Folder in the store that all versions of this recipe share."""

    source: Source
    resolutions: tuple[int, ...]
    """Sides of all stages' pictures, in pixels."""

    full: tuple[int, ...]
    """Those of ``resolutions`` whose pictures are stored whole, not as centre squares."""

    packing: dict[str, Any]
    encoders_folder: str | None
    """Folder in the store of encoders that a node made, if one did."""

    encoders: Mapping[str, Any]
    threads: int
    """CPU threads per actor."""

    batch_tokens: BatchSetting
    clip_batch: BatchSetting
    reuse: ReuseIndex = field(default_factory=ReuseIndex)
    """Earlier shards to copy rows from."""

    @cached_property
    def filters(self) -> Filters:
        """The spec's filters, with ``min_side`` resolved for these resolutions."""
        return self.source.filters.for_sides(self.resolutions)

    def path(self, shard: SourceShard, ending: str) -> str:
        """Path of a shard's file in the pool; see :func:`shard_path`."""
        return shard_path(self.pool, shard.name, shard.identity, ending)

    def is_done(self, shard: SourceShard) -> bool:
        """Whether the shard is complete in the pool. Ray repeats a task that died after finishing
        it."""
        record = self.store.read_json(self.path(shard, "json"))
        return record is not None and is_complete(record, self.store.size)

    def drop(self, work: Work, pair: Mapping[str, Any], score: float) -> None:
        """Drop a pair whose CLIP score is too low."""
        detail = f"{score:.3f}, clip_score is {self.filters.clip_score}"
        work.rejected.append(RejectedRow(pair["key"], pair["source"], Reason.CLIP_SCORE, detail))
        work.dropped[pair["content"]] = score


@dataclass
class Work:
    """A shard on its way through the stages."""

    shard: SourceShard
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Pairs to encode, each with ``at`` (its position in the shard), ``key``, ``source``,
    ``caption``, ``content`` (its content hash), ``picture`` (an index into :attr:`pictures`) and
    ``scores``."""

    pictures: list[dict[Any, Any]] = field(default_factory=list)
    """Decoded pictures: a uint8 array for ``clip`` and for every resolution, None where too
    small."""

    embeddings: dict[str, Any] = field(default_factory=dict)
    """Embedding → one tensor per row of :attr:`rows`."""

    encoders: dict[str, dict[str, str]] = field(default_factory=dict)
    rejected: list[RejectedRow] = field(default_factory=list)
    batches: dict[str, int] = field(default_factory=dict)
    """Encoder, or ``clip_image`` → batch size in tokens or pictures."""

    copied: list[dict[str, Any]] = field(default_factory=list)
    """Pairs copied from earlier shards; they have ``values`` instead of ``picture``."""

    dropped: dict[bytes, float] = field(default_factory=dict)
    """Content hash → CLIP score of pairs that the CLIP filter drops."""

    seconds: dict[str, float] = field(default_factory=dict)
    read: int = 0
    """Source rows read."""

    encoded: int = 0
    """Pairs encoded."""

    done: bool = False
    """Whether the shard is already complete in the pool."""

    error: str = ""
    """Message of a user's mistake. Raised in the driver, as Ray Data would report it as an internal
    error."""

    failure: StorageError | None = None
    """Error of the storage or the machine; raised in the driver, as Ray Data would hide it."""
