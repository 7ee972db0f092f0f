"""EmojiScenes: one thing in the centre or two side by side, by one artist, on a coloured ground.

Some combinations are held out: of concept and ground, and of two concepts side by side. Training
never shows them, and every scene of the validation split has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.demo.drawings import ARTISTS, CONCEPTS, drawing, indices

RESOLUTION = 64
"""Side of the images in pixels."""

GROUNDS: dict[str, tuple[int, int, int]] = {
    "pink": (255, 190, 210),
    "yellow": (255, 236, 150),
    "blue": (160, 204, 255),
    "green": (176, 228, 158),
    "grey": (188, 188, 192),
    "purple": (204, 178, 246),
}

PLACES = ("left", "right", "centre")

_PAIRED = {
    *("frog", "penguin", "rocket", "cactus"),
    *("strawberry", "doughnut", "snowman", "guitar"),
}
PAIRED = tuple(n for n, concept in enumerate(CONCEPTS) if concept.name in _PAIRED)
"""Concepts that appear in pairs: few, so that each is seen often enough on both sides."""

ALL = indices(None)
"""All concepts, by their indices."""

SPLITS = ("train", "validation", "scorer")

_SIZE = {"centre": 52.0, "left": 30.0, "right": 30.0}  # longer side of a thing, in pixels
_AT = {"centre": 32.0, "left": 16.0, "right": 48.0}  # x of its centre, in pixels
_RESIZED, _SHIFTED = 0.04, 1.0  # maximum changes: share of the size, and pixels
_ALONE = {
    "train": 0.5,
    "validation": 0.87,
    "scorer": 0.6,
}  # share of single things, before held-out scenes are rejected


@dataclass(frozen=True)
class Item:
    """A thing in a scene: index of its concept, and its place."""

    concept: int
    place: str


@dataclass(frozen=True)
class Scene:
    """What an image shows; of two things, the left one comes first."""

    items: tuple[Item, ...]
    ground: str
    artist: str
    unseen: bool = False
    """Whether its caption should use a word that no training caption has."""


def held_out_ground(concept: int) -> str:
    """The ground on which training never shows this concept."""
    return list(GROUNDS)[concept % len(GROUNDS)]


def held_out_pair(first: int, second: int) -> bool:
    """Whether training never shows these two concepts side by side, in either order.

    No side of a concept is held out: if there is one, the side follows from the concept, and a
    network does not learn to place things where a caption or paint says.
    """
    if first not in PAIRED or second not in PAIRED:
        return True
    return (PAIRED.index(first) + PAIRED.index(second)) % 4 == 0


def is_trained(items: tuple[Item, ...], ground: str) -> bool:
    """Whether training may show these things on this ground."""
    together = len(items) < 2 or not held_out_pair(items[0].concept, items[1].concept)
    return together and all(ground != held_out_ground(i.concept) for i in items)


def compose(seed: int, split: str, index: int, concepts: Sequence[int] = ALL) -> Scene:
    """Scene ``index`` of a split; a pure function of its arguments.

    Args:
        concepts: What to draw; only those of ``PAIRED`` appear in pairs, if there are two.

    Raises:
        ValueError: ``split`` is not in ``SPLITS``, or ``seed`` or ``index`` is negative.
    """
    rng = generator(seed, split, index, "scene")
    pairs = concepts if split == "scorer" else [c for c in concepts if c in PAIRED]
    alone = _ALONE[split] if len(pairs) > 1 else 1.0
    while True:  # accepts most draws for training, every fifth for validation
        if rng.random() < alone:
            items: tuple[Item, ...] = (Item(concepts[int(rng.integers(len(concepts)))], "centre"),)
        else:
            two = rng.choice(pairs, size=2, replace=False)
            items = tuple(Item(int(c), p) for c, p in zip(two, PLACES[:2], strict=True))
        ground = list(GROUNDS)[rng.integers(len(GROUNDS))]
        artist = list(ARTISTS)[rng.integers(len(ARTISTS))]
        unseen = split == "validation" and rng.random() < 0.12
        if split == "scorer" or is_trained(items, ground) == (split == "train"):
            has_word = len(items) == 1 and bool(CONCEPTS[items[0].concept].unseen)
            return Scene(items, ground, artist, unseen and has_word)


def draw(
    seed: int, split: str, index: int, concepts: Sequence[int] = ALL
) -> tuple[Scene, NDArray[np.uint8]]:
    """Scene ``index`` of a split, and its image, uint8 RGB [64, 64, 3].

    Args:
        concepts: As of :func:`compose`.

    Raises:
        ValueError: ``split`` is not in ``SPLITS``, or ``seed`` or ``index`` is negative; or the
            drawings cannot be fetched.
    """
    scene = compose(seed, split, index, concepts)
    return scene, paint(scene, ARTISTS[scene.artist], generator(seed, split, index, "picture"))


def paint(scene: Scene, package: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Render a scene with a package's drawings, with small random shifts and sizes."""
    canvas = np.empty((RESOLUTION, RESOLUTION, 3), np.float32)
    canvas[:] = np.array(GROUNDS[scene.ground], np.float32) / 255
    for item in scene.items:
        by = rng.uniform(-1, 1, size=3)
        x, y = _AT[item.place] + _SHIFTED * by[0], RESOLUTION / 2 + _SHIFTED * by[1]
        size = round(_SIZE[item.place] * (1 + _RESIZED * by[2]))
        thing = _resized(item.concept, package, size)
        height, width = thing.shape[:2]
        top, left = round(y - height / 2), max(0, round(x - width / 2))
        part = canvas[top : top + height, left : left + width]
        thing = thing[:, : part.shape[1]]
        part *= 1 - thing[..., 3:]
        part += thing[..., :3]
    picture: NDArray[np.uint8] = np.rint(canvas.clip(0, 1) * 255).astype(np.uint8)
    return picture


@cache
def _resized(concept: int, package: str, size: int) -> NDArray[np.float32]:
    """A drawing whose longer side has ``size`` pixels: [H, W, 4], premultiplied RGBA."""
    full = drawing(concept, package)
    scale = size / max(full.shape[:2])
    to = (max(1, round(full.shape[1] * scale)), max(1, round(full.shape[0] * scale)))
    channels = [Image.fromarray(full[..., c]).resize(to, Image.Resampling.BOX) for c in range(4)]
    return np.stack([np.asarray(c) for c in channels], axis=2)


def generator(
    seed: int, split: str, index: int, purpose: Literal["scene", "picture", "caption"]
) -> np.random.Generator:
    """The random generator for one purpose of a scene.

    Raises:
        ValueError: ``split`` is not in ``SPLITS``, or ``seed`` or ``index`` is negative.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: write one of {', '.join(SPLITS)}")
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must be 0 or more, given seed={seed}, index={index}")
    number = ("scene", "picture", "caption").index(purpose)
    return np.random.default_rng([seed, SPLITS.index(split), index, number])
