"""Makes the demo's tiny T5 and CLIP, in the formats of the real ones."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from pipelines.demo.encoders import train_clip, write_t5
from pipelines.steps.context import Context, Result


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    torch.set_num_threads(ctx.cpus)
    files = sorted(ctx.store.local(inputs["data"]).glob("*.parquet"))
    table = pa.concat_tables(pq.read_table(f, columns=["image", "caption"]) for f in files)
    captions = table["caption"].to_pylist()
    pictures = [Image.open(io.BytesIO(data)) for data in table["image"].to_pylist()]
    own = settings["clip_images"]
    total = own + own // 2

    def train(folder: Path, *, images: int, seed: int, before: int) -> float:
        def progress(done: int, loss: float) -> None:
            ctx.report(done=before + done, of=total, unit="images", loss=loss)

        folder.mkdir()
        return train_clip(
            folder, pictures, captions, images=images, batch=128, seed=seed, progress=progress
        )

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        seed = settings["seed"]
        (folder / "t5").mkdir()
        write_t5(folder / "t5", captions, seed=seed)
        losses = {"clip": train(folder / "clip", images=own, seed=seed, before=0)}
        # Pictures are scored by another CLIP than the one that conditions them.
        losses["scorer"] = train(folder / "scorer", images=own // 2, seed=seed + 1, before=own)
        ctx.store.put_folder(folder, ctx.folder)
        names = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
    return Result(files=names, metrics={f"{name}_loss": loss for name, loss in losses.items()})
