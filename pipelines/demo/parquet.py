"""Write generated pairs to Parquet shards: `image` (PNG), `caption` and `key` columns."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

SCHEMA = pa.schema([("image", pa.binary()), ("caption", pa.string()), ("key", pa.string())])

Row = dict[str, bytes | str]
"""A row of ``SCHEMA``."""


def write_shards(
    folder: Path, row: Callable[[int], Row], *, count: int, shards: int, quiet: bool = False
) -> list[Path]:
    """Write rows 0 to `count` − 1 as `part-00000-of-00008.parquet` and so on.

    The same rows are written as the same bytes. Files are written atomically and replace files of
    the same names.

    Args:
        folder: Output folder; created if missing.
        row: Index → row.
        count: Number of rows, at least `shards`.
        shards: Number of files; their sizes differ by one row at most.
        quiet: Do not print a line per file.

    Returns:
        The files, in order.

    Raises:
        ValueError: `count` is less than `shards`, or `folder` holds other shards, which a reader
            would mix with these.
    """
    if not 1 <= shards <= count:
        raise ValueError(
            f"cannot write {count} pictures to {shards} files: "
            "use at least one file and at least one picture for each"
        )
    paths = [folder / f"part-{shard:05d}-of-{shards:05d}.parquet" for shard in range(shards)]
    if foreign := set(folder.glob("part-*.parquet")) - set(paths):
        raise ValueError(
            f"{folder} already holds {len(foreign)} other shards, such as {min(foreign).name}: "
            "write to an empty folder, or remove them first"
        )
    folder.mkdir(parents=True, exist_ok=True)
    bounds = [count * shard // shards for shard in range(shards + 1)]
    for path, start, end in zip(paths, bounds[:-1], bounds[1:], strict=True):
        rows = [row(index) for index in range(start, end)]
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), partial, compression="zstd")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        if not quiet:
            print(f"{path}: {len(rows)} pictures, {path.stat().st_size / 1024:.0f} KiB")
    return paths


def as_png(picture: NDArray[np.uint8]) -> bytes:
    """Encode a picture, uint8 [H, W, 3], as PNG."""
    png = io.BytesIO()
    Image.fromarray(picture).save(png, format="PNG")
    return png.getvalue()
