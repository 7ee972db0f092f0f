"""Write Fashion-MNIST with captions to Parquet shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.demo.fashion.captions import write
from pipelines.demo.fashion.files import FILES, read_split
from pipelines.demo.parquet import Row, as_png, write_shards

SIDE = 32
"""Side of the pictures, in pixels: 28, and a black border."""


def write_parquet(
    folder: Path, *, split: str, count: int, shards: int, seed: int = 0, quiet: bool = False
) -> list[Path]:
    """Write `count` pictures of a split with captions; the same arguments write the same bytes.

    Which pictures, and in which order, is a choice of the seed; a larger `count` adds to it.

    Args:
        folder, count, shards, quiet: As of `write_shards`.
        split: `train` or `validation`.
        seed: Seed of the choice and of the captions.

    Returns:
        The files, in order.

    Raises:
        ValueError: The data set cannot be read, has fewer pictures, or `write_shards` refuses the
            arguments.
    """
    pictures, classes = read_split(split)
    if count > len(pictures):
        raise ValueError(
            f"Fashion-MNIST has {len(pictures):,} pictures for {split}; "
            f"write `data.{split}.rows: {len(pictures)}` or less, not {count}"
        )
    number = list(FILES).index(split)
    order = np.random.default_rng([seed, number]).permutation(len(pictures))

    def row(index: int) -> Row:
        rng = np.random.default_rng([seed, number, index])
        return {
            "image": as_png(as_rgb(pictures[order[index]])),
            "caption": write(int(classes[order[index]]), rng),
            "key": f"{split}-{order[index]:05d}",
        }

    return write_shards(folder, row, count=count, shards=shards, quiet=quiet)


def as_rgb(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey pictures [..., 28, 28] with a black border, as RGB [..., 32, 32, 3]."""
    border = (SIDE - pictures.shape[-1]) // 2
    around = [(0, 0)] * (pictures.ndim - 2) + [(border, border)] * 2
    return np.repeat(np.pad(pictures, around)[..., None], 3, axis=-1)
