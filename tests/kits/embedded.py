"""A small embedded data set, written by the job's last stage without Ray or encoders."""

import numpy as np
import torch

from pipelines.data.row_reuse import content_hash
from pipelines.data.rows import RejectedRow
from pipelines.runs.context import Context
from pipelines.spec.data import Source
from pipelines.steps.embed import assemble
from pipelines.steps.embed_stages import Write
from pipelines.steps.embed_tally import Tally
from pipelines.steps.embed_work import Job, Work

RECIPE = {
    "resolutions": [8, 16],
    "full": [16],
    "packing": {"precision": "fp16", "pictures": "png", "jpeg_quality": 95, "row_group_rows": 4},
    "read": None,
    "encoders": {},
}
T5, CLIP = 4, 6  # widths
ENCODERS = {
    "t5": {"name": "t5-tiny", "sha256": "ab" * 32, "dtype": "float32"},
    "clip": {"name": "clip-tiny", "sha256": "cd" * 32, "dtype": "float32"},
}


def job(store, pool="embeddings/tiny", path="/data"):
    return Job(
        store=store,
        pool=pool,
        source=Source(path=path),
        resolutions=(8, 16),
        full=(16,),
        packing=RECIPE["packing"],
        encoders_folder=None,
        encoders={},
        threads=1,
        batch_tokens=64,
        clip_batch=8,
    )


def embed(
    of, shard, captions, *, keys=None, small=(), bad=(), seconds=None, batches=None, contents=None
):
    """Write a source shard's embedded shard and record into the pool; returns the record.

    A caption has as many T5 tokens as words, and two more CLIP tokens.

    Args:
        keys: By default ``NAME-NUMBER``.
        contents: Content hashes; by default, of each row's number and caption.
        small: Numbers of rows without a picture of 16.
        bad: Key, reason and detail of each rejected row.
    """
    rng = np.random.default_rng(len(captions))
    rows, pictures = [], []
    for i, caption in enumerate(captions):
        key = keys[i] if keys else f"{shard.name}-{i}"
        rows.append({"key": key, "source": shard.path, "caption": caption, "picture": i})
        rows[-1] |= {
            "at": (i, 0),
            "content": contents[i] if contents else content_hash(b"%d" % i, caption),
            "scores": {"clip": 0.5},
        }
        tall = rng.integers(0, 256, (16 + 4 * (i % 2), 16, 3), np.uint8)
        pictures.append({8: tall[:8, :8].copy(), 16: None if i in small else tall})
    lengths = [len(caption.split()) for caption in captions]
    texts = {"t5": [torch.ones(n, T5) for n in lengths]}
    texts["clip_text"] = [torch.ones(n + 2, CLIP) for n in lengths]
    for name in ("clip_text_pooled", "clip_image"):
        texts[name] = [torch.ones(CLIP) for _ in lengths]
    work = Work(shard, rows, pictures, texts, ENCODERS)
    work.rejected = [RejectedRow(key, shard.path, reason, detail) for key, reason, detail in bad]
    work.read, work.seconds = len(rows) + len(bad), seconds or {"decode": 0.5, "t5": 2.0}
    work.batches, work.encoded = batches or {}, len(rows)
    Write(of).work(work)
    return of.store.read_json(of.path(shard, "json"))


def version(of, record, *, name="train", fingerprint="f00d", settings=None):
    """Write the node's result as :func:`pipelines.executor.commit.commit` does; returns its
    folder."""
    folder = f"nodes/embed/{name}-{fingerprint}"
    ctx = Context(
        node=f"embed/{name}",
        fingerprint=fingerprint,
        store=of.store,
        folder=folder,
        cpus=1,
        runtime={},
        manifests={},
        board=None,
    )
    tally = Tally(of.pool)
    for row in record:
        tally.add(row)
    result = assemble(ctx, of, tally)
    of.store.commit(folder, result.files, {"finished": "2026-11-24T18:00:00+00:00"})
    latest = {"fingerprint": fingerprint, "settings": settings or {}, "inputs": {}}
    of.store.write_json(f"nodes/embed/{name}.latest.json", latest)
    return folder
