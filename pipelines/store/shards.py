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

FORMAT = 2
FOLDER = "shards"
_META = b"ediffi"


def pixels_at(resolution: int) -> str:
    """The column of a stage's pictures; a stage reads its own alone."""
    return f"pixels_{resolution}"


def write(
    rows: Mapping[str, Sequence[Any]],
    *,
    resolutions: Sequence[int],
    embeddings: Sequence[EmbeddingSpec],
) -> bytes:
    """A shard's bytes, the same for the same rows.

    Args:
        rows: ``key``, ``caption``, ``pixels_R`` (uint8 [R, R, 3]) for every resolution, and a
            tensor a row for every embedding: ``[tokens, dim]`` for a sequence, ``[dim]`` for a
            pooled one.
    """
    columns: dict[str, pa.Array] = {
        "key": pa.array(rows["key"], pa.string()),
        "caption": pa.array(rows["caption"], pa.string()),
    }
    for name in map(pixels_at, resolutions):
        columns[name] = pa.array([p.tobytes() for p in rows[name]], pa.large_binary())
    for spec in embeddings:
        half = [t.to(torch.float16).numpy() for t in rows[spec.name]]
        columns[spec.name] = pa.array([h.tobytes() for h in half], pa.large_binary())
        if spec.kind == "sequence":
            columns[f"{spec.name}_length"] = pa.array([len(h) for h in half], pa.int32())
    meta = {
        "format": FORMAT,
        "resolutions": list(resolutions),
        "dtype": "float16",
        "embeddings": [spec.__dict__ for spec in embeddings],
    }
    table = pa.table(columns).replace_schema_metadata({_META: json.dumps(meta, sort_keys=True)})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=1024)
    return sink.getvalue()


class Shards:
    """A data set of embedded shards as one stage reads it, held in memory as Arrow columns.

    Rows are addressed by number, in the order of the shards' names.
    """

    def __init__(self, store: Store, folder: str, resolution: int) -> None:
        names = [f for f in store.files(f"{folder}/{FOLDER}") if f.endswith(".parquet")]
        if not names:
            raise ValueError(f"{store.full(folder)} holds no shards; run its embed node first")
        self.resolution = resolution
        tables = [self._read(store, f"{folder}/{FOLDER}/{name}") for name in names]
        meta = json.loads(tables[0].schema.metadata[_META])
        self.embeddings = tuple(EmbeddingSpec(**e) for e in meta["embeddings"])
        self.table = pa.concat_tables(tables)

    def _read(self, store: Store, path: str) -> pa.Table:
        data = store.read(path)
        if data is None:
            raise ValueError(f"shard {path} vanished; run its embed node again")
        file = pq.ParquetFile(pa.BufferReader(data))
        meta = json.loads(file.schema_arrow.metadata[_META])
        if meta["format"] != FORMAT:
            raise ValueError(f"shards of format {meta['format']}; this version reads {FORMAT}")
        if self.resolution not in meta["resolutions"]:
            raise ValueError(
                f"shards with pictures of {meta['resolutions']} have none of {self.resolution}"
            )
        others = {pixels_at(r) for r in meta["resolutions"] if r != self.resolution}
        return file.read(columns=[n for n in file.schema_arrow.names if n not in others])

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
        raw = taken[pixels_at(side)].to_pylist()
        pixels = np.stack([np.frombuffer(b, np.uint8).reshape(side, side, 3) for b in raw])
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
