"""Draw an EmojiScenes data set, for the demo."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pipelines.demo.make import write_parquet
from pipelines.runs.context import Context, Result


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    """Draw the scenes and write them as Parquet shards."""
    with tempfile.TemporaryDirectory() as scratch:
        files = write_parquet(
            Path(scratch),
            split=settings["split"],
            count=settings["rows"],
            shards=settings["shards"],
            seed=settings["seed"],
            quiet=True,
        )
        ctx.store.put_folder(Path(scratch), ctx.folder)
        names = [f.name for f in files]
    return Result(files=names, metrics={"rows": settings["rows"], "shards": settings["shards"]})
