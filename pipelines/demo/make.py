"""Write EmojiScenes to Parquet shards: `image` (PNG), `caption` and `key` columns."""

import io
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.demo.captions import write
from pipelines.demo.scenes import draw, generator

SCHEMA = pa.schema([("image", pa.binary()), ("caption", pa.string()), ("key", pa.string())])


def write_parquet(
    folder: Path, *, split: str, count: int, shards: int, seed: int = 0, quiet: bool = False
) -> list[Path]:
    """Write `count` captioned scenes of a split as `part-00000-of-00008.parquet` and so on.

    The same arguments write the same bytes. Files are written atomically and replace files of the
    same names.

    Args:
        folder: Output folder; created if missing.
        split: One of `pipelines.demo.scenes.SPLITS`.
        count: Number of scenes, at least `shards`.
        shards: Number of files; their sizes differ by one scene at most.
        seed: Seed of the data set.
        quiet: Do not print a line per file.

    Returns:
        The files, in order.

    Raises:
        ValueError: `split` is unknown, `count` is less than `shards`, or `folder` holds other
            shards, which a reader would mix with these.
    """
    if not 1 <= shards <= count:
        raise ValueError(
            f"cannot write {count} scenes to {shards} files: "
            "use at least one file and at least one scene for each"
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
        rows = [row(seed, split, index) for index in range(start, end)]
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), partial, compression="zstd")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        if not quiet:
            print(f"{path}: {len(rows)} scenes, {path.stat().st_size / 1024:.0f} KiB")
    return paths


def row(seed: int, split: str, index: int) -> dict[str, bytes | str]:
    """Scene `index` of a split as a row of `SCHEMA`; a pure function of its arguments."""
    scene, picture = draw(seed, split, index)
    png = io.BytesIO()
    Image.fromarray(picture).save(png, format="PNG")
    return {
        "image": png.getvalue(),
        "caption": write(scene, generator(seed, split, index, "caption")),
        "key": f"{split}-{index:06d}",
    }
