"""Reading token sequences: binary columns of raw float16 against Arrow's lists of it."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import in_turn, report

ROWS, DIM = 512, 1024


def sequences() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 78, ROWS)
    return [rng.standard_normal((n, DIM)).astype(np.float16) for n in lengths]


def written(column: pa.Array) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"tokens": column}), sink, compression="zstd")
    return sink.getvalue()


def main() -> None:
    rows = sequences()
    binary = written(pa.array([r.tobytes() for r in rows], pa.large_binary()))
    listed = written(pa.array([r.ravel() for r in rows], pa.list_(pa.float16())))

    def read(data: bytes) -> pa.ChunkedArray:
        return pq.read_table(pa.BufferReader(data), use_threads=False)["tokens"]

    def from_binary() -> list[np.ndarray]:
        return [
            np.frombuffer(value.as_buffer(), np.float16).reshape(-1, DIM) for value in read(binary)
        ]

    def from_lists() -> list[np.ndarray]:
        return [value.values.to_numpy().reshape(-1, DIM) for value in read(listed)]

    for found in (from_binary(), from_lists()):
        assert all(np.array_equal(a, b) for a, b in zip(rows, found, strict=True))
    s = in_turn(7, binary=from_binary, lists=from_lists)
    megabytes = sum(r.nbytes for r in rows) / 1e6
    report(
        "Shards: binary columns against lists",
        [
            f"{ROWS} rows of {DIM}-d float16 tokens, {megabytes:.0f} MB, one thread, "
            "median of 7 rounds in turn.",
            "",
            "| column | read | size |",
            "|---|---|---|",
            f"| `large_binary` (ours) | {s['binary'] * 1e3:.0f} ms | {len(binary) / 1e6:.0f} MB |",
            f"| `list<halffloat>` | {s['lists'] * 1e3:.0f} ms | {len(listed) / 1e6:.0f} MB |",
            "",
            f"Ratio: {s['lists'] / s['binary']:.1f}×.",
        ],
    )


if __name__ == "__main__":
    main()
