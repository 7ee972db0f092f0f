"""Write EmojiScenes to Parquet shards."""

from collections.abc import Sequence
from pathlib import Path

from pipelines.demo.captions import write
from pipelines.demo.drawings import indices
from pipelines.demo.parquet import Row, as_png, write_shards
from pipelines.demo.scenes import ALL, draw, generator


def write_parquet(
    folder: Path,
    *,
    split: str,
    count: int,
    shards: int,
    seed: int = 0,
    concepts: Sequence[str] | None = None,
    quiet: bool = False,
) -> list[Path]:
    """Write `count` captioned scenes of a split; the same arguments write the same bytes.

    Args:
        folder, count, shards, quiet: As of `write_shards`.
        split: One of `pipelines.demo.scenes.SPLITS`.
        seed: Seed of the data set.
        concepts: Names of the things to draw; None for all.

    Returns:
        The files, in order.

    Raises:
        ValueError: `split` or a concept is unknown, or `write_shards` refuses the arguments.
    """
    drawn = indices(concepts)
    return write_shards(
        folder,
        lambda index: row(seed, split, index, drawn),
        count=count,
        shards=shards,
        quiet=quiet,
    )


def row(seed: int, split: str, index: int, concepts: Sequence[int] = ALL) -> Row:
    """Scene `index` of a split as a row; a pure function of its arguments."""
    scene, picture = draw(seed, split, index, concepts)
    return {
        "image": as_png(picture),
        "caption": write(scene, generator(seed, split, index, "caption")),
        "key": f"{split}-{index:06d}",
    }
