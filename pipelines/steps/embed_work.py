"""What an embedding job is to do, and a shard on its way through it."""

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


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all shards of an embedding job have in common; travels to every actor."""

    store: Store
    pool: str
    """The folder in the store that versions of this recipe share."""

    source: Source
    resolutions: tuple[int, ...]
    full: tuple[int, ...]
    packing: dict[str, Any]
    encoders_folder: str | None
    encoders: Mapping[str, Any]
    threads: int
    batch_tokens: BatchSetting
    clip_batch: BatchSetting
    reuse: ReuseIndex = field(default_factory=ReuseIndex)
    """Where rows may be copied from."""

    @cached_property
    def filters(self) -> Filters:
        return self.source.filters.for_sides(self.resolutions)

    def path(self, shard: SourceShard, ending: str) -> str:
        return shard_path(self.pool, shard.name, shard.identity, ending)

    def is_done(self, shard: SourceShard) -> bool:
        """Whether it is in the pool, whole: Ray repeats what died before it could say so."""
        record = self.store.read_json(self.path(shard, "json"))
        return record is not None and is_complete(record, self.store.size)

    def drop(self, work: Work, pair: Mapping[str, Any], score: float) -> None:
        """A pair that CLIP finds apart."""
        detail = f"{score:.3f}, the least is {self.filters.clip_score}"
        work.bad.append(RejectedRow(pair["key"], pair["source"], Reason.CLIP_SCORE, detail))
        work.dropped[pair["content"]] = score


@dataclass
class Work:
    """A shard between two stages."""

    shard: SourceShard
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Those to encode: for each ``at`` (its place among all), ``key``, ``source``, ``caption``,
    ``content``, ``picture`` (a number) and ``scores``."""

    pictures: list[dict[Any, Any]] = field(default_factory=list)
    """For each ``clip`` and every resolution a uint8 array; None where it is too small."""

    embeddings: dict[str, Any] = field(default_factory=dict)
    encoders: dict[str, dict[str, str]] = field(default_factory=dict)
    bad: list[RejectedRow] = field(default_factory=list)
    batches: dict[str, int] = field(default_factory=dict)
    """Encoder, or ``clip_image`` → tokens or pictures it worked on together."""

    copied: list[dict[str, Any]] = field(default_factory=list)
    """Those that an earlier shard has: instead of ``picture``, ``values``."""

    dropped: dict[bytes, float] = field(default_factory=dict)
    """Contents that CLIP's filter drops, and their scores."""

    seconds: dict[str, float] = field(default_factory=dict)
    read: int = 0
    encoded: int = 0
    done: bool = False
    error: str = ""
    """A user's mistake, in words: raised in the driver, as Ray Data would print it as its own."""
