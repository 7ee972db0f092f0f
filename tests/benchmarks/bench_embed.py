"""The embedding job against a plain loop, and what sorting by length and deduplication give.

The job's first shard pays for Ray, the actors and the encoders; it is stated apart, and what is
compared is the time from it to the last one.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from harness import in_turn, report
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from ediffi_core.encoders import CLIP, MAX_TOKENS, T5
from pipelines.data.sources import list_shards
from pipelines.demo import captions as words
from pipelines.demo.encoders import train_clip, write_t5
from pipelines.demo.scenes import draw
from pipelines.spec.data import Source
from pipelines.steps.embed import run
from pipelines.steps.embed_stages import AllStages
from pipelines.steps.embed_work import Job, Work
from pipelines.store.artifacts import Store

CAPTIONS, SHARDS, SCENES, SIDE, BATCH, ROUNDS = 50_000, 50, 512, 64, 64, 3


def texts() -> tuple[list[str], list[bytes]]:
    """Captions as uneven as people's: 3 to 60 words, some said often; and a few pictures."""
    rng = np.random.default_rng(0)
    scenes = [draw(0, "train", i) for i in range(SCENES)]
    pictures = []
    for _, pixels in scenes:
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, format="PNG")
        pictures.append(png.getvalue())
    pool = [words.write(scenes[i % SCENES][0], rng) for i in range(CAPTIONS // 2)]
    return [pool[i] for i in rng.zipf(1.3, CAPTIONS) % len(pool)], pictures


def write_data(folder: Path, captions: Sequence[str], pictures: Sequence[bytes]) -> None:
    folder.mkdir()
    size = CAPTIONS // SHARDS
    for i in range(SHARDS):
        mine = captions[i * size : (i + 1) * size]
        images = [pictures[j % len(pictures)] for j in range(size)]
        pq.write_table(
            pa.table({"image": images, "caption": list(mine)}), folder / f"{i:03d}.parquet"
        )


def job_of(store: Store, folder: Path, encoders: Path) -> Job:
    return Job(
        store=store,
        pool="embeddings/bench",
        source=Source(path=str(folder)),
        resolutions=(SIDE,),
        full=(),
        packing={"pictures": "raw"},
        encoders_folder=None,
        encoders={"t5": str(encoders / "t5"), "clip": str(encoders / "clip")},
        threads=1,
        batch_tokens=4096,
        clip_batch=BATCH,
    )


def the_job(job: Job) -> tuple[float, float]:
    """→ seconds to the first shard, and from there to the last."""
    start = time.perf_counter()
    pools = {n: {"actors": None, "gpus": 0} for n in ("decode", "t5", "clip", "write")}
    done = [time.perf_counter() for _ in run(job, list_shards(job.source), pools, cpus=1)]
    return done[0] - start, done[-1] - done[0]


def a_loop(job: Job) -> float:
    """The same work, shard after shard, in this process; → seconds from the first to the last."""
    torch.set_num_threads(1)
    whole, done = AllStages(job), []
    for shard in list_shards(job.source):
        work = Work(shard)
        whole.run(work)
        done.append(time.perf_counter())
    return done[-1] - done[0]


@torch.inference_mode()
def padded_t5(t5: T5, captions: Sequence[str]) -> None:
    """What one writes first: batches in the order of the file, each padded to its longest."""
    for at in range(0, len(captions), BATCH):
        batch = t5.tokenizer(
            list(captions[at : at + BATCH]), padding=True, truncation=True,
            max_length=MAX_TOKENS, return_tensors="pt",
        )  # fmt: skip
        t5.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)


@torch.inference_mode()
def padded_clip(clip: CLIP, captions: Sequence[str]) -> None:
    for at in range(0, len(captions), BATCH):
        clip.model.encode_text(clip.tokenizer(list(captions[at : at + BATCH])), normalize=True)


def make_encoders(folder: Path, captions: Sequence[str], pictures: Sequence[bytes]) -> None:
    (folder / "t5").mkdir(parents=True)
    (folder / "clip").mkdir()
    write_t5(folder / "t5", captions[:2000], seed=0)
    opened: list[Any] = [Image.open(io.BytesIO(p)) for p in pictures[:128]]
    train_clip(
        folder / "clip", opened, captions[:128], images=128, batch=128, seed=0,
        progress=lambda done, loss: None,
    )  # fmt: skip


def main() -> None:
    from pipelines.executor.ray_cluster import start_ray

    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options, sys.argv[1:] = parser.parse_known_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        captions, pictures = texts()
        make_encoders(root / "encoders", captions, pictures)
        t5, clip = T5(str(root / "encoders/t5")), CLIP(str(root / "encoders/clip"))
        few = captions[: CAPTIONS // SHARDS * 4]
        text_s = in_turn(
            options.rounds,
            padded=lambda: (padded_t5(t5, few), padded_clip(clip, few)),
            ours=lambda: (t5.text(few, batch_tokens=4096), clip.text(few, batch_tokens=4096)),
        )
        write_data(root / "data", captions, pictures)
        start_ray(1)
        job_s, loop_s, first_s = [], [], []
        for i in range(options.rounds):
            store = Store.open(str(root / f"store{i}"))
            job = job_of(store, root / "data", root / "encoders")
            loop_s.append(a_loop(job))
            start_s, rest_s = the_job(
                job_of(Store.open(f"{store.root}-job"), root / "data", root / "encoders")
            )
            first_s.append(start_s)
            job_s.append(rest_s)
    rows = CAPTIONS - CAPTIONS // SHARDS
    ratio = median(loop_s) / median(job_s)
    report(
        "Embedding",
        [
            f"{CAPTIONS:,} captions and pictures in {SHARDS} shards, tiny encoders, one thread; "
            f"medians of {options.rounds} rounds in turn.",
            "",
            f"The job {rows / median(job_s):,.0f} rows/s, a plain loop over the same shards "
            f"{rows / median(loop_s):,.0f}: {ratio:.2f}×. The job's first shard came after "
            f"{median(first_s):.0f} s.",
            "",
            f"T5 and CLIP of {len(few):,} captions, sorted by length and each once, against "
            f"batches of {BATCH} padded in the order of the file: "
            f"{text_s['padded'] / text_s['ours']:.2f}×.",
        ],
    )


if __name__ == "__main__":
    main()
