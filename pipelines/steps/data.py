"""Generate the data set that a spec's ``make:`` names."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pipelines.demo import make
from pipelines.demo.fashion import make as fashion
from pipelines.runs.context import Context, Result

WRITERS = {"emoji-scenes": make.write_parquet, "fashion-mnist": fashion.write_parquet}
"""``data.SPLIT.make`` → what writes its pairs."""


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    """Write the pairs as Parquet shards."""
    chosen = {"concepts": settings["concepts"]} if "concepts" in settings else {}
    with tempfile.TemporaryDirectory() as scratch:
        files = WRITERS[settings["make"]](
            Path(scratch),
            split=settings["split"],
            count=settings["rows"],
            shards=settings["shards"],
            seed=settings["seed"],
            quiet=True,
            **chosen,
        )
        ctx.store.put_folder(Path(scratch), ctx.folder)
        names = [f.name for f in files]
    return Result(files=names, metrics={"rows": settings["rows"], "shards": settings["shards"]})
