"""Embeds image–caption Parquet with T5 and CLIP: one source shard, one embedded shard.

A Ray Data job. A shard's row file is written after the shard itself, both whole, so a killed job
does again only the shards that were in flight.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.sources import parquet_files
from pipelines.steps.context import Context, Result
from pipelines.store.artifacts import sha256

BATCH = 64
MAX_PIXELS = 64 * 2**20  # a picture that decodes to more is a bomb, or belongs to another pipeline


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    source = settings["source"]
    place = ctx.runtime["path"] if source else str(ctx.store.local(inputs["data"]))
    columns = (source["image"], source["caption"]) if source else ("image", "caption")
    files = parquet_files(place)
    if source and [f.name for f in files] != list(source["files"]):
        raise ValueError(f"the files at {place} changed while the pipeline ran; run it again")

    rows = {f.stem: ctx.store.read_json(row_path(ctx.folder, f.stem)) for f in files}
    missing = [str(f.absolute()) for f in files if rows[f.stem] is None]
    ctx.report(done=len(files) - len(missing), of=len(files), unit="shards")
    for row in _encode(ctx, settings, inputs, columns, missing):
        rows[row["shard"]] = row
        done = sum(r is not None for r in rows.values())
        ctx.save_progress(done, len(files), "shards")
        ctx.report(done=done, of=len(files), unit="shards")

    finished = [rows[f.stem] for f in files]
    kept = sum(r["rows"] for r in finished)
    reasons: dict[str, int] = {}
    for row in finished:
        for bad in row["quarantined"]:
            reasons[bad["reason"]] = reasons.get(bad["reason"], 0) + 1
    if not kept:
        worst = ", ".join(f"{n} × {why}" for why, n in sorted(reasons.items()))
        raise ValueError(
            f"not one row of {place} is usable ({worst}); see {row_path(ctx.folder, '*')}"
        )
    names = [f"shards/{f.stem}.parquet" for f in files] + [f"rows/{f.stem}.json" for f in files]
    return Result(
        files=names,
        metrics={
            "rows": kept,
            "quarantined": sum(reasons.values()),
            "shards": len(files),
            "encoded_now": sum(
                r["rows"] for r in finished if r["shard"] in {Path(m).stem for m in missing}
            ),
        },
        info={"quarantined": reasons, "encoders": finished[0]["encoders"]},
    )


def row_path(folder: str, shard: str) -> str:
    return f"{folder}/rows/{shard}.json"


def _encode(
    ctx: Context,
    settings: dict[str, Any],
    inputs: dict[str, str],
    columns: tuple[str, str],
    files: list[str],
) -> Iterator[dict[str, Any]]:
    """Runs the Ray Data job over source files; yields a manifest row as each shard is done."""
    if not files:
        return
    import ray.data

    data = ray.data.from_items([{"file": f} for f in files], override_num_blocks=len(files))
    workers = min(ctx.cpus, len(files))
    done = data.map_batches(
        ShardEncoder,
        fn_constructor_args=(ctx, settings, inputs, columns),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
    )
    for row in done.iter_rows():
        if row["error"]:
            raise ValueError(row["error"])
        yield ctx.store.read_json(row_path(ctx.folder, row["shard"]))


class ShardEncoder:
    """Loads the encoders once, then turns source files into embedded shards."""

    def __init__(
        self,
        ctx: Context,
        settings: dict[str, Any],
        inputs: dict[str, str],
        columns: tuple[str, str],
    ) -> None:
        import torch

        from pipelines.model import load_encoders

        torch.set_num_threads(1)
        self.ctx, self.resolutions, self.columns = ctx, settings["resolutions"], columns
        self.error = ""
        try:
            self.t5, self.clip = load_encoders(
                ctx.store, inputs.get("encoders"), ctx.runtime["encoders"]
            )
        except ValueError as error:  # raised here, Ray Data would print it as its own failure
            self.error = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        shards = [self.error or self.encode(Path(str(file))) for file in batch["file"]]
        return {"shard": shards, "error": [self.error] * len(shards)}

    def encode(self, file: Path) -> str:
        import numpy as np
        import pyarrow.parquet as pq
        import torch

        from ediffi_core.encoders import embedding_specs
        from pipelines.store import shards

        start = time.time()
        image, caption = self.columns
        table = pq.read_table(file)
        keys = table["key"].to_pylist() if "key" in table.column_names else None
        good: list[tuple[str, str, Any]] = []
        bad: list[dict[str, str]] = []
        for i, (data, text) in enumerate(
            zip(table[image].to_pylist(), table[caption].to_pylist(), strict=True)
        ):
            key = str(keys[i]) if keys else f"{file.stem}-{i:08d}"
            try:
                good.append((key, checked_caption(text), decode(data)))
            except BadRow as error:
                bad.append({"key": key, "reason": str(error)})

        columns: dict[str, list[Any]] = {
            "key": [k for k, _, _ in good],
            "caption": [c for _, c, _ in good],
        }
        for side in self.resolutions:
            columns[shards.pixels_at(side)] = [np.asarray(square(p, side)) for _, _, p in good]
        sequences = {
            name: [torch.empty(0)] * len(good)
            for name in ("t5", "clip_text", "clip_text_pooled", "clip_image")
        }
        # Captions of like length together: short ones do not pay for the padding of long ones.
        order = sorted(range(len(good)), key=lambda i: (len(good[i][1]), good[i][0]))
        for at in range(0, len(order), BATCH):
            mine = order[at : at + BATCH]
            texts = [good[i][1] for i in mine]
            tokens, pooled = self.clip.text(texts)
            pictures = self.clip.image([good[i][2] for i in mine])
            for name, values in (
                ("t5", self.t5.text(texts)),
                ("clip_text", tokens),
                ("clip_text_pooled", pooled),
                ("clip_image", pictures),
            ):
                for i, value in zip(mine, values, strict=True):
                    sequences[name][i] = value
        specs = embedding_specs(self.t5.dim, self.clip.text_dim, self.clip.dim)
        data = shards.write(
            {**columns, **sequences}, resolutions=self.resolutions, embeddings=specs
        )
        self.ctx.store.write(f"{self.ctx.folder}/shards/{file.stem}.parquet", data)
        row = {
            "shard": file.stem,
            "rows": len(good),
            "quarantined": bad,
            "bytes": len(data),
            "sha256": sha256(data),
            "seconds": round(time.time() - start, 2),
            "encoders": {"t5": self.t5.sha256, "clip": self.clip.sha256},
        }
        self.ctx.store.write_json(row_path(self.ctx.folder, file.stem), row)
        return file.stem


class BadRow(Exception):
    """A row that cannot be used, and why."""


def checked_caption(text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        raise BadRow("caption is empty")
    return text


def decode(data: Any) -> Any:
    """Image bytes → an RGB PIL picture; BadRow if they are none."""
    from PIL import Image, UnidentifiedImageError

    if not isinstance(data, bytes) or not data:
        raise BadRow("image is empty")
    try:
        picture = Image.open(io.BytesIO(data))
        if picture.width * picture.height > MAX_PIXELS:
            raise BadRow(f"image has more than {MAX_PIXELS} pixels")
        return picture.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise BadRow("image cannot be decoded") from error


def square(picture: Any, side: int) -> Any:
    """Shortest side to ``side``, then the centre: what base and SR256 are trained on."""
    from PIL import Image

    scale = side / min(picture.size)
    width, height = (max(side, round(n * scale)) for n in picture.size)
    resized = picture.resize(
        (width, height), Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BICUBIC
    )
    left, top = (width - side) // 2, (height - side) // 2
    return resized.crop((left, top, left + side, top + side))
