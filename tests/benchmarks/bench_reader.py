"""Shuffled, padded, owned batches of embedded pairs: our reader against the ones people use.

All give the same: pictures in float32, half-precision tokens padded to the batch's longest, their
mask, and a pooled vector. Peers are given our collation, which is faster than the usual one, so
that only reading and shuffling are compared. Files are in the page cache.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from harness import in_turn, report

sys.path.insert(0, str(Path(__file__).parents[2]))

from ediffi_core.conditioning import EmbeddingSpec
from pipelines.store import columns
from pipelines.store.artifacts import Store, sha256
from pipelines.store.dataset import Version
from pipelines.store.order import Order
from pipelines.store.reader import Reader
from pipelines.store.shards import Header, write

ROWS, SHARDS, DIM, POOLED, SIDE, BATCH, ROUNDS = 2048, 8, 1024, 768, 64, 64, 5
SPECS = (
    EmbeddingSpec(name="tokens", dim=DIM, kind="sequence"),
    EmbeddingSpec(name="pooled", dim=POOLED, kind="pooled"),
)
NAMES = ("pixels", "tokens", "pooled")
AIMS = {"datasets": 1.3, "webdataset": 2.5, "streaming": 2.5, "ray_data": 5.0}

Row = dict[str, bytes]
Pass = Callable[[], Iterable[Any]]


def shard(number: int) -> dict[str, list[Any]]:
    rng = np.random.default_rng(number)
    count = ROWS // SHARDS
    noise = torch.from_numpy(rng.standard_normal((128, DIM), np.float32)).half()
    lengths = rng.integers(77, 129, count)
    return {
        "key": [f"{number}-{i}" for i in range(count)],
        "caption": [f"caption {number} {i}" for i in range(count)],
        f"pixels_{SIDE}": list(rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)),
        "tokens": [noise[:n].roll(i, 1) for i, n in enumerate(lengths.tolist())],
        "pooled": list(torch.from_numpy(rng.standard_normal((count, POOLED), np.float32)).half()),
    }


def row_bytes(rows: Mapping[str, list[Any]]) -> list[Row]:
    return [
        {"pixels": p.tobytes(), "tokens": t.numpy().tobytes(), "pooled": v.numpy().tobytes()}
        for p, t, v in zip(rows[f"pixels_{SIDE}"], rows["tokens"], rows["pooled"], strict=True)
    ]


def collate(batch: Mapping[str, Iterable[Any]]) -> Any:
    """Columns of bytes → what all give."""
    found = {n: [np.frombuffer(b, np.uint8) for b in batch[n]] for n in NAMES}
    tokens, mask = columns.padded(found["tokens"], DIM, "fp16")
    x = columns.as_images(np.stack([p.reshape(SIDE, SIDE, 3) for p in found["pixels"]]))
    return x, tokens, mask, columns.unpacked(np.stack(found["pooled"]), "fp16")


def collate_rows(rows: list[Row]) -> Any:
    return collate({n: [r[n] for r in rows] for n in NAMES})


# -- ours --------------------------------------------------------------------------------------


def written(store: Store) -> Version:
    header = Header(resolutions=(SIDE,), embeddings=SPECS)
    entries = []
    for i in range(SHARDS):
        data, summary = write(shard(i), header)
        path = f"embeddings/bench/{i}.parquet"
        store.write(path, data)
        found = {"name": str(i), "path": path, "bytes": len(data), "sha256": sha256(data)}
        entries.append(found | summary)
    return Version.write(store, "dataset", entries, header)


def opened(store: Store) -> Reader:
    version = Version.open(store, "dataset")
    order = Order(
        version.usable(SIDE),
        group_rows=version.header.packing.row_group_rows,
        seed=0,
        lanes=4,
        run=BATCH // 4,
        window=128,
    )
    # Half of the data, so row groups are read from the files in every epoch.
    return Reader(store, version, SIDE, order=order, cache_bytes=ROWS * 225_000 // 2)


def ours(store: Store, ahead: int) -> Pass:
    reader = opened(store)
    epoch = iter(range(10**6))

    def run() -> Iterator[Any]:
        start = next(epoch) * ROWS
        indices = (np.arange(start + i, start + i + BATCH) for i in range(0, ROWS, BATCH))
        batches = reader.stream(indices, ahead) if ahead else map(reader.batch, indices)
        for x, cond in batches:
            yield x, cond.sequences["tokens"], cond.masks["tokens"], cond.pooled["pooled"]

    return run


def first_batch_s(store: Store) -> float:
    start = time.perf_counter()
    opened(store).batch(np.arange(10**9 + 12_345, 10**9 + 12_345 + BATCH))
    return time.perf_counter() - start


# -- peers -------------------------------------------------------------------------------------


def plain_parquet(folder: Path) -> list[str]:
    folder.mkdir()
    for i in range(SHARDS):
        rows = row_bytes(shard(i))
        table = pa.table({n: pa.array([r[n] for r in rows], pa.large_binary()) for n in NAMES})
        pq.write_table(
            table, folder / f"{i}.parquet", row_group_size=32, compression="none",
            use_dictionary=False,
        )  # fmt: skip
    return sorted(str(p) for p in folder.glob("*.parquet"))


def datasets_pass(folder: Path, workers: int) -> Pass:
    import datasets

    datasets.disable_progress_bars()
    files = plain_parquet(folder)
    data = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(folder / "cache")
    )
    if workers:
        loader = torch.utils.data.DataLoader(
            data, BATCH, shuffle=True, num_workers=workers, collate_fn=collate_rows,
            persistent_workers=True,
        )  # fmt: skip
        return lambda: loader
    return lambda: map(collate, data.shuffle(keep_in_memory=True).iter(batch_size=BATCH))


def webdataset_pass(folder: Path, workers: int) -> Pass:
    import webdataset

    folder.mkdir()
    for i in range(SHARDS):
        with tarfile.open(folder / f"{i}.tar", "w") as tar:
            for j, row in enumerate(row_bytes(shard(i))):
                for name, data in row.items():
                    entry = tarfile.TarInfo(f"{i:02d}{j:06d}.{name}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    data = webdataset.WebDataset(
        sorted(str(p) for p in folder.glob("*.tar")), shardshuffle=SHARDS
    ).shuffle(256)
    loader = torch.utils.data.DataLoader(
        data.batched(BATCH, collation_fn=collate_rows), batch_size=None, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip
    return lambda: loader


def streaming_pass(folder: Path) -> Pass:
    import streaming

    with streaming.MDSWriter(
        out=str(folder), columns=dict.fromkeys(NAMES, "bytes"), size_limit=1 << 26
    ) as out:
        for i in range(SHARDS):
            for row in row_bytes(shard(i)):
                out.write(row)
    streaming.base.util.clean_stale_shared_memory()
    data = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    loader = streaming.StreamingDataLoader(data, batch_size=BATCH, collate_fn=collate_rows)
    return lambda: loader


def ray_data_pass(folder: Path) -> Pass:
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
    data = ray.data.read_parquet(plain_parquet(folder))
    return lambda: data.iter_torch_batches(
        batch_size=BATCH, local_shuffle_buffer_size=256, collate_fn=collate
    )


# -- the comparison ----------------------------------------------------------------------------


def consumed(batches: Iterable[Any]) -> tuple[int, int, float]:
    """Rows, tokens, and a sum that other rows would not have."""
    rows, tokens, total = 0, 0, 0.0
    for x, sequence, mask, pooled in batches:
        assert sequence.shape[:2] == mask.shape and x.shape[1:] == (3, SIDE, SIDE)
        rows, tokens = rows + len(x), tokens + int(mask.sum())
        total += float(pooled.double().sum())
    return rows, tokens, round(total, 3)


def lists_against_binary() -> str:
    """Why columns are bytes: the same tokens as Arrow's lists of halffloat."""
    tokens = shard(0)["tokens"]

    def file(column: pa.Array) -> bytes:
        sink = io.BytesIO()
        pq.write_table(pa.table({"tokens": column}), sink, compression="zstd")
        return sink.getvalue()

    ways = {
        "binary": file(pa.array([t.numpy().tobytes() for t in tokens], pa.large_binary())),
        "lists": file(pa.array([t.numpy().ravel() for t in tokens], pa.list_(pa.float16()))),
    }
    s = in_turn(
        3,
        **{
            n: lambda d=d: pq.read_table(pa.BufferReader(d), use_threads=False)
            for n, d in ways.items()
        },
    )
    return f"Tokens as `list<halffloat>` take {s['lists'] / s['binary']:.1f}× as long as bytes."


def main() -> None:
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(prefix="bench-reader-"))
    try:
        store = Store.at(str(root / "ours"))
        written(store)
        passes: dict[str, Pass] = {
            "ours": ours(store, ahead=2),
            "ours_in_turn": ours(store, ahead=0),
        }
        failed: list[str] = []
        peers: dict[str, Callable[[], Pass]] = {
            "datasets": lambda: datasets_pass(root / "datasets", 0),
            "datasets_2_workers": lambda: datasets_pass(root / "datasets2", 2),
            "webdataset": lambda: webdataset_pass(root / "webdataset", 0),
            "webdataset_2_workers": lambda: webdataset_pass(root / "webdataset2", 2),
            "streaming": lambda: streaming_pass(root / "streaming"),
            "ray_data": lambda: ray_data_pass(root / "ray"),
        }
        want = consumed(passes["ours"]())
        for name, made in peers.items():
            try:
                passes[name] = made()
                found = consumed(passes[name]())
            except Exception as error:  # a peer that does not run is told, and the others go on
                passes.pop(name, None)
                why = " ".join(f"{type(error).__name__}: {error}".split())
                failed.append(f"{name} was not measured: {why[:200]}")
                continue
            if found != want:
                failed.append(f"{name} gave {found} rows, tokens, sum; ours are {want}")
        s = in_turn(ROUNDS, **{n: lambda p=p: consumed(p()) for n, p in passes.items()})
        first = sorted(first_batch_s(store) for _ in range(5))[2]
        report(
            "Reading: shuffled batches against other libraries",
            [
                f"{ROWS} rows of 77–128 tokens × {DIM} in fp16 and a {SIDE}×{SIDE} picture, "
                f"batches of {BATCH}, two cores, median of {ROUNDS} rounds in turn.",
                "",
                "| reader | rows/s | ours is | aim |",
                "|---|---|---|---|",
                *(
                    f"| {n} | {ROWS / t:,.0f} | {t / s['ours']:.2f}× | {AIMS.get(n, '')} |"
                    for n, t in s.items()
                ),
                "",
                *failed,
                f"First batch at image 10⁹, from nothing opened: {first * 1e3:.0f} ms.",
                lists_against_binary(),
            ],
        )
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
