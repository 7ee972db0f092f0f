"""Captions of Fashion-MNIST's classes, and the class that a caption asks for."""

from __future__ import annotations

import re

import numpy as np

CLASSES = (
    "t-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
"""Names of the classes, in the order of the published labels."""

NAMES = (
    ("t-shirt", "top", "tee"),
    ("trousers", "pair of trousers", "pants"),
    ("pullover", "sweater", "jumper"),
    ("dress",),
    ("coat", "jacket"),
    ("sandal",),
    ("shirt",),
    ("sneaker", "trainer", "running shoe"),
    ("bag", "handbag"),
    ("ankle boot", "boot"),
)
"""Class → words for it; the first one stands in about half of its captions."""

FORMS = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "{} on black",
    "a photo of {} on a black background",
    "a product photo of {}",
    "an image of {}",
)

_OTHERS = {"trouser": 1, "boots": 9, "ankle boots": 9, "sneakers": 7, "sandals": 5}
_CLASS_OF = {name: n for n, names in enumerate(NAMES) for name in names} | _OTHERS
_WORD = re.compile(
    rf"(?<![\w-])({'|'.join(sorted(map(re.escape, _CLASS_OF), key=len, reverse=True))})(?![\w-])"
)


def write(label: int, rng: np.random.Generator) -> str:
    """Describe a picture of a class, from 0 to 9, in one of several forms."""
    first, *others = NAMES[label]
    name = others[rng.integers(len(others))] if others and rng.random() < 0.5 else first
    return FORMS[rng.integers(len(FORMS))].format(_noun(name))


def parse(caption: str) -> int:
    """The class that a caption asks for, from 0 to 9; the inverse of :func:`write`.

    Raises:
        ValueError: The caption names no known class, or several.
    """
    found = {_CLASS_OF[word] for word in _WORD.findall(" ".join(caption.lower().split()))}
    if len(found) != 1:
        raise ValueError(
            f"{caption!r} names {len(found) or 'none'} of Fashion-MNIST's classes: "
            f"name one of {', '.join(CLASSES)}"
        )
    return found.pop()


def _noun(name: str) -> str:
    """A name with its article; plurals have none."""
    if name in ("trousers", "pants"):
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
