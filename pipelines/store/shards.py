"""Embedded shards: their Parquet schema, their writer, and the stream that training reads.

Sequences are raw little-endian float16 bytes at their true length (Arrow lists are 6–9 times
slower to read); widths and dtype are in the file's metadata.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ediffi_core.conditioning import Conditioning, EmbeddingSpec
from ediffi_core.encoders import pad
from pipelines.store.artifacts import Store

FORMAT = 1
FOLDER = "shards"
_META = b"ediffi"


def write(
    rows: Mapping[str, Sequence[Any]], *, resolution: int, embeddings: Sequence[EmbeddingSpec]
) -> bytes:
    """A shard's bytes, the same for the same rows.

    Args:
        rows: ``key``, ``caption``, ``pixels`` (uint8 [R, R, 3]) and a tensor a row for every
            embedding: ``[tokens, dim]`` for a sequence, ``[dim]`` for a pooled one.
    """
    columns: dict[str, pa.Array] = {
        "key": pa.array(rows["key"], pa.string()),
        "caption": pa.array(rows["caption"], pa.string()),
        "pixels": pa.array([p.tobytes() for p in rows["pixels"]], pa.binary()),
    }
    for spec in embeddings:
        half = [t.to(torch.float16).numpy() for t in rows[spec.name]]
        columns[spec.name] = pa.array([h.tobytes() for h in half], pa.large_binary())
        if spec.kind == "sequence":
            columns[f"{spec.name}_length"] = pa.array([len(h) for h in half], pa.int32())
    meta = {
        "format": FORMAT,
        "resolution": resolution,
        "dtype": "float16",
        "embeddings": [spec.__dict__ for spec in embeddings],
    }
    table = pa.table(columns).replace_schema_metadata({_META: json.dumps(meta, sort_keys=True)})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=1024)
    return sink.getvalue()


class Shards:
    """A data set of embedded shards, held in memory as compressed-free Arrow columns.

    Rows are addressed by number, in the order of the shards' names.
    """

    def __init__(self, store: Store, folder: str) -> None:
        names = [f for f in store.files(f"{folder}/{FOLDER}") if f.endswith(".parquet")]
        if not names:
            raise ValueError(f"{store.full(folder)} holds no shards; run its embed node first")
        tables = []
        for name in names:
            data = store.read(f"{folder}/{FOLDER}/{name}")
            tables.append(pq.read_table(pa.BufferReader(data)))
        meta = json.loads(tables[0].schema.metadata[_META])
        if meta["format"] != FORMAT:
            raise ValueError(f"shards of format {meta['format']}; this version reads {FORMAT}")
        self.resolution: int = meta["resolution"]
        self.embeddings = tuple(EmbeddingSpec(**e) for e in meta["embeddings"])
        self.table = pa.concat_tables(tables)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def captions(self) -> list[str]:
        captions: list[str] = self.table["caption"].to_pylist()
        return captions

    def rows(self, numbers: Sequence[int]) -> tuple[Tensor, Conditioning]:
        """→ pictures [N, 3, R, R] float32 in [-1, 1], and their conditioning."""
        taken = self.table.take(pa.array(numbers, pa.int64()))
        side = self.resolution
        pixels = np.stack(
            [np.frombuffer(b, np.uint8).reshape(side, side, 3) for b in taken["pixels"].to_pylist()]
        )
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        cond = Conditioning({}, {}, {})
        for spec in self.embeddings:
            raw = taken[spec.name].to_pylist()
            values = [
                torch.from_numpy(np.frombuffer(b, np.float16).astype(np.float32)) for b in raw
            ]
            if spec.kind == "sequence":
                sequences, masks = pad([v.view(-1, spec.dim) for v in values])
                cond.sequences[spec.name], cond.masks[spec.name] = sequences, masks  # type: ignore[index]
            else:
                cond.pooled[spec.name] = torch.stack(values)  # type: ignore[index]
        return x.contiguous(), cond


class Stream:
    """Training's endless order of rows: a pure function of (seed, index of the image)."""

    def __init__(self, rows: int, seed: int) -> None:
        self.count, self.seed = rows, seed
        self._orders: dict[int, np.ndarray[Any, Any]] = {}

    def __call__(self, index: Tensor) -> list[int]:
        """Row numbers of the images at these places of the stream; each row once an epoch."""
        out = []
        for i in index.tolist():
            epoch, place = divmod(i, self.count)
            if epoch not in self._orders:
                rng = np.random.default_rng([self.seed, epoch])
                self._orders = {epoch: rng.permutation(self.count)} | {
                    k: v for k, v in self._orders.items() if k == epoch - 1
                }
            out.append(int(self._orders[epoch][place]))
        return out
