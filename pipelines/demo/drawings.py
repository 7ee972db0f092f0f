"""The demo's drawings: 36 concepts, each drawn by six groups of artists, and their names."""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image

from pipelines.demo.fetch import drawings

SIDE = 128
"""Side in pixels at which drawings are rendered, before cropping and resizing."""


@dataclass(frozen=True)
class Concept:
    """A thing that every artist has drawn."""

    name: str
    """Its CLDR name, except for ``snowman``, which CLDR calls "snowman without snow"."""

    icon: str
    """Name of its icon in the packages."""

    codepoint: str
    """Unicode code point of its emoji, in hexadecimal."""

    others: tuple[str, ...] = ()
    """Further names from CLDR's keywords that captions use."""

    unseen: tuple[str, ...] = ()
    """Words for it that no training caption has."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names that training captions use."""
        return (self.name, *self.others)


CONCEPTS = (
    Concept("frog", "frog", "1F438", unseen=("toad",)),
    Concept("penguin", "penguin", "1F427"),
    Concept("pig", "pig", "1F416", unseen=("piglet", "hog")),
    Concept("cat", "cat", "1F408", unseen=("kitten", "kitty")),
    Concept("octopus", "octopus", "1F419", unseen=("squid",)),
    Concept("dolphin", "dolphin", "1F42C", unseen=("porpoise",)),
    Concept("lady beetle", "lady-beetle", "1F41E", ("ladybug", "ladybird")),
    Concept("snail", "snail", "1F40C"),
    Concept("koala", "koala", "1F428"),
    Concept("tiger", "tiger", "1F405"),
    Concept("honeybee", "honeybee", "1F41D", ("bee",), unseen=("wasp",)),
    Concept("rocket", "rocket", "1F680", unseen=("spaceship", "spacecraft")),
    Concept("airplane", "airplane", "2708", ("plane",), unseen=("airliner", "aircraft")),
    Concept("automobile", "automobile", "1F697", ("car",), unseen=("motor vehicle", "sedan")),
    Concept("sailboat", "sailboat", "26F5", ("yacht",), unseen=("sailing ship",)),
    Concept("tractor", "tractor", "1F69C"),
    Concept("cactus", "cactus", "1F335"),
    Concept("mushroom", "mushroom", "1F344"),
    Concept("sunflower", "sunflower", "1F33B"),
    Concept("Christmas tree", "christmas-tree", "1F384", unseen=("xmas tree",)),
    Concept("palm tree", "palm-tree", "1F334", ("palm",), unseen=("coconut palm",)),
    Concept("strawberry", "strawberry", "1F353"),
    Concept("watermelon", "watermelon", "1F349"),
    Concept("banana", "banana", "1F34C"),
    Concept("grapes", "grapes", "1F347"),
    Concept("pineapple", "pineapple", "1F34D"),
    Concept("hamburger", "hamburger", "1F354", ("burger",), unseen=("cheeseburger",)),
    Concept("doughnut", "doughnut", "1F369", ("donut",)),
    Concept("birthday cake", "birthday-cake", "1F382", ("cake",)),
    Concept("umbrella", "umbrella", "2602", unseen=("parasol",)),
    Concept("snowman", "snowman-without-snow", "26C4"),
    Concept("balloon", "balloon", "1F388"),
    Concept("guitar", "guitar", "1F3B8", unseen=("ukulele",)),
    Concept("crown", "crown", "1F451", unseen=("tiara",)),
    Concept("soccer ball", "soccer-ball", "26BD", ("football",)),
    Concept("jack-o-lantern", "jack-o-lantern", "1F383", ("pumpkin",)),
)

ARTISTS: dict[str, str] = {
    "Noto": "noto",
    "Noto v1": "noto-v1",
    "Twemoji": "twemoji",
    "Fluent": "fluent-emoji-flat",
    "EmojiOne": "emojione",
}
"""Artist → package; the artists in the training data."""

HELD_OUT_ARTIST = ("Firefox OS", "fxemoji")
"""Name and package of the artist that is used only to check the scorer."""


def indices(names: Sequence[str] | None) -> tuple[int, ...]:
    """Names of concepts, None for all → their indices in ``CONCEPTS``, in its order.

    Raises:
        ValueError: A name is unknown or given twice, or there is none.
    """
    known = [concept.name for concept in CONCEPTS]
    if names is None:
        names = known
    if unknown := [name for name in names if name not in known]:
        near = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f": write some of {', '.join(known)}"
        raise ValueError(f"there are no drawings of {unknown[0]!r}{hint}")
    if not names or len(set(names)) < len(names):
        raise ValueError("name at least one concept, and each once")
    return tuple(n for n, name in enumerate(known) if name in names)


@cache
def drawing(concept: int, package: str) -> NDArray[np.float32]:
    """An artist's drawing of a concept, cropped to its visible pixels.

    Returns:
        [H, W, 4] in [0, 1], RGB premultiplied by alpha; the longer side is at most ``SIDE``.

    Raises:
        ValueError: The drawings cannot be fetched, or the cache is damaged.
    """
    png = bytes(resvg_py.svg_to_bytes(svg_string=_svg(CONCEPTS[concept].icon, package)))
    rgba = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), np.float32) / 255
    rows, columns = np.nonzero(rgba[..., 3] > 0.1)
    cropped = rgba[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return np.concatenate([cropped[..., :3] * cropped[..., 3:], cropped[..., 3:]], axis=2)


def _svg(icon: str, package: str) -> str:
    """The drawing as a complete SVG of ``SIDE`` pixels."""
    icons = _read(f"@iconify-json/{package}/icons.json")
    name = {n.replace("-", ""): n for n in (*icons["icons"], *icons.get("aliases", {}))}[
        icon.replace("-", "")  # Firefox OS writes names without hyphens
    ]
    while name not in icons["icons"]:
        name = icons["aliases"][name]["parent"]
    body = icons["icons"][name]
    box = {key: body.get(key, icons.get(key, 0)) for key in ("left", "top", "width", "height")}
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box["left"]} {box["top"]} {box["width"]} {box["height"]}" '
        f'width="{SIDE}" height="{SIDE}">{body["body"]}</svg>'
    )


@cache
def keywords(concept: int) -> tuple[str, ...]:
    """CLDR's keywords of a concept, without any words from names of concepts."""
    found = {entry["hexcode"].removesuffix("-FE0F"): entry for entry in _read(_NAMES)}
    tags = found[CONCEPTS[concept].codepoint]["tags"]
    taken = {w for c in CONCEPTS for n in (*c.names, *c.unseen) for w in n.lower().split()}
    return tuple(tag for tag in tags if tag not in taken)


_NAMES = "emojibase-data/en/data.json"


@cache
def _read(name: str) -> Any:
    file = drawings() / name
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the demo's drawings in {file.parent} are damaged ({error}): remove "
            f"{drawings()}, and they are fetched again"
        ) from error
