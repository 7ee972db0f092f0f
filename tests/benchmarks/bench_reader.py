"""Shuffled, padded, owned batches of embedded pairs: our reader against the ones people use.

All give the same: pictures in float32, half-precision tokens padded to the batch's longest, their
mask, and a pooled vector. Peers are given our collation, which is faster than the usual one, so
that only reading and shuffling are compared. Files are in the page cache.
"""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import shutil
import statistics
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
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
        written = write(shard(i), header)
        data = written.data
        path = f"embeddings/bench/{i}.parquet"
        store.write(path, data)
        found = {"name": str(i), "path": path, "bytes": len(data), "sha256": sha256(data)}
        entries.append(found | written.record)
    return Version.write(store, "dataset", entries, header)


def opened(store: Store, folder: str = "dataset") -> Reader:
    version = Version.open(store, folder)
    rows, lanes, window = version.header.packing.row_group_rows, 4, 128
    order = Order(
        version.usable(SIDE),
        group_rows=rows,
        seed=0,
        lanes=lanes,
        run=BATCH // lanes,
        window=window,
    )
    # What the order needs, so every epoch reads every row group from its file once.
    groups = 3 * lanes * (window // rows + 2) // 2
    held = Reader(store, version, SIDE).files.read(0, 0, version.header.columns(SIDE)).bytes
    return Reader(store, version, SIDE, order=order, cache_bytes=groups * held)


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


def first_batch_s(store: Store, index: int) -> float:
    start = time.perf_counter()
    opened(store).batch(np.arange(index, index + BATCH))
    return time.perf_counter() - start


def wait_share(store: Store, step_s: float = 0.05, batches: int = 64) -> float:
    """Of the time of a loop that computes without the interpreter, what goes to waiting."""
    a = torch.randn(768, 768)
    reader, waited = opened(store), 0.0
    begun = time.perf_counter()
    stream = reader.stream((np.arange(BATCH * i, BATCH * i + BATCH) for i in range(batches)), 2)
    for _ in range(batches):
        asked = time.perf_counter()
        next(stream)
        waited += time.perf_counter() - asked
        while time.perf_counter() - asked < step_s:
            torch.mm(a, a)
    return waited / (time.perf_counter() - begun)


def anonymous_mib() -> float:
    """Of this process; pages of files, which the kernel can take back, are not counted."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(n.split()[1]) for n in lines if n.startswith("Anonymous:")) / 1024


def held_mib(root: str, folder: str) -> float:
    """What a process that reads a whole epoch holds at most, beyond what it did before."""
    torch.set_num_threads(1)
    before, most = anonymous_mib(), 0.0
    reader = opened(Store.at(root), folder)
    places = range(0, len(reader), BATCH)
    for _ in reader.stream((np.arange(i, i + BATCH) for i in places), ahead=2):
        most = max(most, anonymous_mib() - before)
    return most


def held_of(store: Store, version: Version, times: int) -> float:
    """:func:`held_mib` of a version that names every shard so many times, in a new process."""
    more = [
        version.table.set_column(
            version.table.schema.get_field_index("name"),
            "name",
            pa.array([f"{name}-{i}" for name in version.column("name")]),
        )
        for i in range(times)
    ]
    Version.write(store, f"dataset-{times}", pa.concat_tables(more), version.header)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(held_mib, store.root, f"dataset-{times}").result()


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
        version = written(store)
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
        starts = np.random.default_rng(0).integers(0, 10**9, 9).tolist()
        first = [first_batch_s(store, start) for start in starts]
        held = {times: held_of(store, version, times) for times in (1, 4)}
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
                f"First batch at a random image below 10⁹, from nothing opened: "
                f"{statistics.median(first) * 1e3:.0f} ms, at most {max(first) * 1e3:.0f} ms of "
                f"{len(first)} (aim: 1,000).",
                f"A step of 50 ms that leaves the interpreter alone waits {wait_share(store):.1%} "
                "of the time for its batches.",
                f"Anonymous memory of the reader, at most, over an epoch: {held[1]:.0f} MiB; of "
                f"four times the rows {held[4]:.0f} MiB: {held[4] / held[1]:.2f}× (aim: 0.9 to "
                "1.1).",
                lists_against_binary(),
            ],
        )
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
