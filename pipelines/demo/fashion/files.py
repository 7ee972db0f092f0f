"""The published files of Fashion-MNIST, in the IDX format.

Xiao, Rasul and Vollgraf 2017, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
Learning Algorithms", arXiv 1708.07747. MIT License.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

VARIABLE = "EDIFFI_FASHION_MNIST"
"""Environment variable with the folder of the files."""

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts them."""

REMEDY = (
    f"install Debian's package dataset-fashion-mnist, or set {VARIABLE} to a folder with the four "
    "published files, packed (.gz) or not"
)

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "validation": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
"""Split → names of its pictures and labels."""

SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""SHA-256 of the published files, unpacked."""


def folder() -> Path:
    """The folder of the files: ``$EDIFFI_FASHION_MNIST``, else Debian's."""
    return Path(os.environ.get(VARIABLE) or DEBIAN).expanduser()


def missing() -> list[str]:
    """Names of the files that are not in :func:`folder`, packed or not."""
    names = (name for pair in FILES.values() for name in pair)
    return [name for name in names if _path(folder(), name) is None]


def read_split(split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read a split.

    Args:
        split: ``train`` (60,000 pictures) or ``validation`` (the 10,000 published as test set).

    Returns:
        Pictures, uint8 [N, 28, 28], 0 is black; and their classes, uint8 [N], from 0 to 9.

    Raises:
        ValueError: A file is missing, damaged, or another than the published one; or the split is
            unknown.
    """
    if split not in FILES:
        raise ValueError(f"unknown split {split!r}: write one of {', '.join(FILES)}")
    pictures, classes = (read_published(folder(), name) for name in FILES[split])
    return pictures, classes


def read_published(folder: Path, name: str) -> NDArray[np.uint8]:
    """Read a published file, packed or not.

    Raises:
        ValueError: It is missing, damaged, or its content is not the published one.
    """
    path = _path(folder, name)
    if path is None:
        raise ValueError(f"Fashion-MNIST: there is no {name} or {name}.gz in {folder}; {REMEDY}")
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}); {REMEDY}") from None
    if hashlib.sha256(data).hexdigest() != SHA256[name]:
        raise ValueError(
            f"{path} is damaged or another file: its content does not have the SHA-256 of "
            f"Fashion-MNIST's {name}; {REMEDY}"
        )
    return read_idx(data, str(path))


def read_idx(data: bytes, source: str) -> NDArray[np.uint8]:
    """Read the content of an IDX file of bytes.

    The header is two zero bytes, the type (8 for uint8), the number of dimensions, and each
    dimension as four bytes, most significant first; the values follow.

    Args:
        source: name of the file, for messages.

    Raises:
        ValueError: The header is not one, or the values are too few or too many.
    """
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or len(data) < 4 + 4 * data[3]:
        raise ValueError(f"{source} is not an IDX file of unsigned bytes: its header is wrong")
    start = 4 + 4 * data[3]
    shape = tuple(np.frombuffer(data, ">u4", data[3], offset=4).tolist())
    if len(data) - start != math.prod(shape):
        raise ValueError(
            f"{source} is damaged: its header announces {math.prod(shape):,} values, "
            f"and there are {len(data) - start:,}"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _path(folder: Path, name: str) -> Path | None:
    """The file, unpacked or packed; None if there is neither."""
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
