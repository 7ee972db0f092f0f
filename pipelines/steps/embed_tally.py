"""Totals over the shards of a version, added up one shard at a time to save memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipelines.data.shard_pool import shard_path
from pipelines.store.dataset import table_of
from pipelines.store.shards import Header

BLOCK = 1024  # shards per block of the table

NOT_IN_TABLE = ("faults", "metadata", "tokens")
"""Fields of a shard's record that the table has no column for, and that may be long."""


class Tally:
    """Adds up shard records in any order, in some 300 bytes per shard."""

    def __init__(self, pool: str) -> None:
        self.pool = pool
        self.header: Header | None = None
        """Header of all shards; None until a shard has rows."""

        self.shards = 0
        self.totals = Counter(rows=0, read=0, bytes=0, captions=0, encoded_now=0, copied_now=0)
        self.quarantined: Counter[str] = Counter()
        self.filtered: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.tokens: dict[str, Counter[int]] = {}
        self.rms_error: dict[str, float] = {}
        self.batches: dict[str, dict[str, int]] = {}
        """Encoder → its smallest and largest batch size, where known."""

        self.empty: list[str] = []
        """Paths of the records of shards without rows."""

        self._blocks: list[pa.Table] = []
        self._block: list[dict[str, Any]] = []

    def add(self, record: Mapping[str, Any], *, now: bool = False) -> None:
        """Add a shard.

        Args:
            record: Its record in the pool.
            now: Whether it was embedded for this version.
        """
        self.shards += 1
        self.totals["read"] += record["read"]
        if now:
            self.totals["encoded_now"] += record.get("encoded", record["rows"])
            self.totals["copied_now"] += record.get("copied", 0)
        self.quarantined.update(record["quarantined"])
        self.filtered.update(record["filtered"])
        self.seconds.update(record["seconds"])
        if not record["rows"]:
            self.empty.append(
                shard_path(self.pool, record["name"], record["source_identity"], "json")
            )
            return
        if self.header is None:
            metadata = {k.encode(): v.encode() for k, v in record["metadata"].items()}
            self.header = Header.from_metadata(metadata)
        for what in ("rows", "bytes", "captions"):
            self.totals[what] += record[what]
        for name, lengths in record["tokens"].items():
            counts = self.tokens.setdefault(name, Counter())
            counts.update({int(length): n for length, n in lengths.items()})
        for name, error in record["rms_error"].items():
            self.rms_error[name] = max(error, self.rms_error.get(name, 0.0))
        for name, size in record.get("batches", {}).items():
            found = self.batches.setdefault(name, {"least": size, "most": size})
            found["least"], found["most"] = min(size, found["least"]), max(size, found["most"])
        usable = {side: record["usable"][str(side)] for side in self.header.resolutions}
        kept = {what: value for what, value in record.items() if what not in NOT_IN_TABLE}
        self._block.append({**kept, "usable": usable})
        if len(self._block) >= BLOCK:
            self._close()

    def table(self) -> pa.Table:
        """The version's table: one row per shard with rows. There must be at least one."""
        if self._block:
            self._close()
        return pa.concat_tables(self._blocks)

    def _close(self) -> None:
        assert self.header is not None
        self._blocks.append(table_of(self._block, self.header))
        self._block = []

    def stats(self) -> dict[str, Any]:
        """Statistics of the version; they depend only on its shards, except for ``seconds``."""
        return {
            "pool": self.pool,
            "empty": sorted(self.empty),
            **{k: self.totals[k] for k in ("read", "rows", "bytes", "captions")},
            "tokens": {name: dict(sorted(c.items())) for name, c in self.tokens.items()},
            "quarantined": dict(sorted(self.quarantined.items())),
            "filtered": dict(sorted(self.filtered.items())),
            "seconds": dict(self.seconds),
            "batches": self.batches,
            "rms_error": dict(self.rms_error),
        }
