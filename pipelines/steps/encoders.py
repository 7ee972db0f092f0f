"""Make the demo's tiny T5 and CLIP encoders, in the formats of the real ones."""

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
from pipelines.rgb import FORMATS
from pipelines.runs.context import Context, Result


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    """Write the T5, and train the CLIP on the data set."""
    torch.set_num_threads(ctx.cpus)
    files = sorted(ctx.store.local(inputs["data"]).glob("*.parquet"))
    table = pa.concat_tables(pq.read_table(f, columns=["image", "caption"]) for f in files)
    captions = table["caption"].to_pylist()
    pictures = [
        Image.open(io.BytesIO(data), formats=FORMATS) for data in table["image"].to_pylist()
    ]
    of = settings["clip_images"]

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        seed = settings["seed"]
        for name in ("t5", "clip"):
            (folder / name).mkdir()
        write_t5(folder / "t5", captions, seed=seed)
        loss = train_clip(
            folder / "clip",
            pictures,
            captions,
            images=of,
            batch=64,
            seed=seed,
            progress=lambda done, loss: ctx.report(done=done, of=of, unit="images", loss=loss),
        )
        ctx.store.put_folder(folder, ctx.folder)
        names = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
    return Result(files=names, metrics={"clip_loss": loss})
