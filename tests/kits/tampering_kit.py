"""Flip bits of a store's files, one at a time, and see what drawing makes of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from pipelines.store.artifacts import Store

HEAD = 64
"""Bytes at the head of a file, where formats keep lengths."""


def flipped(data: bytes, bit: int) -> bytes:
    """The same with one bit inverted."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def flip_all(
    store: Store, names: Iterable[str], draw: Callable[[], Any], *, bits: int, seed: int
) -> set[str]:
    """Flip bits of each file, and assert that each is refused by name or changes no picture.

    A file counts as named if the error has its path, or that of a node to which it points.

    Args:
        draw: loads the model and returns its pictures.
        bits: of each file: the first in its head, the others anywhere.

    Returns:
        The files that were refused at least once.
    """
    expected, chosen, refused = draw(), random.Random(seed), set()
    for name in names:
        data = store.read(name)
        sizes = [min(len(data), HEAD), *[len(data)] * (bits - 1)]
        for bit in (chosen.randrange(8 * size) for size in sizes):
            store.write(name, flipped(data, bit))
            try:
                found = draw()
            except ValueError as error:
                points = name.startswith("registry/") or name.endswith("/manifest.json")
                said = str(error)
                assert name in said or (points and "nodes/" in said), f"{name}, {bit}: {said}"
                refused.add(name)
            else:
                assert np.array_equal(found, expected), f"bit {bit} of {name} changes pictures"
            finally:
                store.write(name, data)
    assert np.array_equal(draw(), expected)
    return refused
